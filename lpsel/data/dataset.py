"""Where rows come from: a file, the Hub or the embedded generator, streamed, with a content id for every row."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lpsel.data.column_forms import Example, Form, mapped_form, recognize, to_example
from lpsel.data.formats import ENDINGS, Numbered, reader_of
from lpsel.errors import UnusableRow, UserError, check_choice, check_int, first_line

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from lpsel.data.content_ids import Contents, Scan

log = logging.getLogger(__name__)

NO_CONTENT = Example(())


class Row(NamedTuple):
    """A row.

    Attributes:
        index: counts from 0, after `dataset.skip` rows.
        raw: as in the source.
        example: without turns if the row is unusable.
        unusable: why the row cannot be used (`UnusableRow.kind`), None if it can.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here needs
    raw: dict[str, Any]
    example: Example
    unusable: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """Where rows come from and which of them to use.

    Attributes:
        name: shown in results and folder names.
        path: local file or Hub id; null for the embedded generator.
        split: of a Hub dataset or of the generator; in a .json file, the name of the list (or "data").
        columns: our field -> the source's column, for columns with other names. Fields: instruction, input and
            output; prompt and completion; messages; conversations.
        skip: number of rows to skip at the beginning.
        limit: maximum number of rows after those.
        bad_rows: skip to leave out unusable rows, which keep their number; error to stop at the first one.
        cluster_column: a column of the source that names clusters.
        license: of the rows, as the Hub names it.
        synthetic: arguments of `lpsel.toy.data.generate`, used if path is null.
    """

    name: str
    path: str | None = None
    split: str = "train"
    columns: dict[str, str] | None = None
    skip: int = 0
    limit: int | None = None
    bad_rows: str = "error"
    cluster_column: str | None = None
    license: str | None = None
    synthetic: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.synthetic is None:
            raise UserError("dataset.path", "null", f"{self.name} has no path", "set dataset.path=FILE_OR_HUB_ID")
        if self.path is not None and self.synthetic is not None:
            problem = f"dataset={self.name} is generated from a seed and has no path"
            raise UserError("dataset.path", self.path, problem, "set dataset=local")
        check_int("dataset.skip", self.skip, 0)
        check_choice("dataset.bad_rows", self.bad_rows, ("error", "skip"))
        if self.limit is not None:
            check_int("dataset.limit", self.limit, 1, hint="set it to null for all rows")
        if self.columns is not None and self.columns != {}:
            mapped_form(self.columns)


class Source:
    """The rows of a dataset, read as a stream on every iteration and never all in memory.

    The ids are computed once, in the first pass; later passes find the id of a row by its position.

    Raises:
        UserError: a missing file or Hub dataset, an invalid row (with file and line), columns of no known form, no
            rows or none that can be used, or a file that changes between two passes.
        UnusableRow: a row that cannot be used, with bad_rows=error.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        self.spec = spec
        self._state: tuple[int, ...] | None = None  # of the file in the first pass

    def __iter__(self) -> Iterator[Row]:
        spec = self.spec
        location, unit, rows = self._open()
        index, form = -1, None
        for index, (number, raw) in enumerate(islice(rows, spec.skip, self.stop)):
            try:
                form = form or self.form(raw)
                if spec.cluster_column is not None and spec.cluster_column not in raw:
                    problem = f"no such column, the row has {', '.join(map(str, raw)) or 'none'}"
                    raise UserError(
                        "dataset.cluster_column", spec.cluster_column, problem, "name one of these, or null"
                    )
                example, unusable = to_example(raw, form), None
            except UnusableRow as error:
                example, unusable = NO_CONTENT, self.skipped(error, f"{location}, {unit} {number}")
            except UserError as error:
                raise error.at(f"{location}, {unit} {number}") from None
            yield Row(index, raw, example, unusable)
        if index < 0:
            after = f" after dataset.skip={spec.skip}" if spec.skip else ""
            raise UserError(location, None, f"no rows{after}", "set dataset.path to a dataset that has some")

    def raw_rows(self) -> Iterator[dict[str, Any]]:
        """The rows as in the source, without interpreting their columns."""
        return (raw for _, raw in islice(self._open()[2], self.spec.skip, self.stop))

    @property
    def stop(self) -> int | None:
        """The row of the file or dataset at which this source ends; None for its end."""
        return None if self.spec.limit is None else self.spec.skip + self.spec.limit

    def example(self, raw: Mapping[str, Any]) -> Example:
        """A row as an example, without turns if it is to be skipped."""
        try:
            return to_example(raw, self.form(raw))
        except UnusableRow as error:
            self.skipped(error, self.spec.name)
            return NO_CONTENT

    def skipped(self, error: UnusableRow, location: str) -> str:
        """The kind of a row to skip; with bad_rows=error, raise the error with its location and this option."""
        if self.spec.bad_rows == "skip":
            return error.kind
        skip = "set dataset.bad_rows=skip to leave such rows out"
        located = error.at(location)
        located.hint = f"{error.hint}, or {skip}" if error.hint else skip
        raise located from None

    def check_skipped(self, unusable: "pa.Array | None") -> None:
        """Raise for the first of the rows that an earlier run with bad_rows=skip has skipped, unless this one skips.

        Args:
            unusable: kinds of the rows (N,), null for usable ones; None if all are usable.
        """
        if unusable is None or self.spec.bad_rows == "skip":
            return
        row = unusable.is_valid().index(True).as_py()
        self.skipped(UnusableRow("unusable row", problem=unusable[row].as_py()), self.location(row))

    def location(self, index: int) -> str:
        """The file and line of a row, for messages."""
        location, unit, rows = self._open()
        number, _ = next(islice(rows, self.spec.skip + index, None))
        return f"{location}, {unit} {number}"

    @cached_property
    def _scan(self) -> "Scan":
        from lpsel.data.content_ids import counts, listed, scan

        scanned, name = scan(self), self.spec.name
        if kinds := counts(scanned.unusable):
            n, skipped = len(scanned.ids), sum(kinds.values())
            if skipped == n:
                problem = f"none of {n:,} rows can be used: {listed(kinds)}"
                raise UserError("dataset", name, problem, "convert them, or use other data")
            log.info(
                "Rows: %s of %s rows of %s are unusable and skipped: %s", f"{skipped:,}", f"{n:,}", name, listed(kinds)
            )
        return scanned

    @property
    def ids(self) -> "pa.LargeStringArray":
        """The content id of every row, in order; the first access reads the source."""
        return self._scan.ids

    @property
    def unusable(self) -> "pa.Array | None":
        """The kind of every unusable row (N,), null for the others; None if all rows are usable."""
        return self._scan.unusable

    @property
    def empty_answer(self) -> "NDArray[np.bool_]":
        """Whether the row has no answer but white space, bool (N,)."""
        return self._scan.empty_answer

    @cached_property
    def contents(self) -> "Contents":
        """The distinct contents of the usable rows."""
        from lpsel.data.content_ids import contents_of

        return contents_of(self.ids, self.unusable)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ids in order: the same for the same rows in any file, form or name."""
        from lpsel.data.content_ids import fingerprint

        return fingerprint(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def form(self, raw: Mapping[str, Any]) -> Form:
        """The form of a row: that of `dataset.columns`, or the known form that its columns have."""
        return mapped_form(self.spec.columns) if self.spec.columns else recognize(raw)

    @property
    def is_parquet(self) -> bool:
        """Whether the source is a local Parquet file."""
        path = self.spec.path
        return path is not None and path.lower().endswith(".parquet") and Path(path).expanduser().is_file()

    def _open(self) -> tuple[str, str, Iterator[Numbered]]:
        """Where the rows are, what counts them, and the rows."""
        spec = self.spec
        if spec.path is None:
            from lpsel.toy.data import generate

            return f"dataset {spec.name}", "row", _numbered(generate(split=spec.split, **(spec.synthetic or {})))
        path = Path(spec.path).expanduser()
        reader = reader_of(spec.path)
        if path.is_file():
            if reader is None:
                raise UserError("dataset.path", spec.path, f"must end in {ENDINGS}", "rename or convert the file")
            self._check_unchanged(path)
            return str(path), reader.unit, reader.read(path, spec.split)
        if path.exists():
            what = "a folder" if path.is_dir() else "not a regular file"
            raise UserError("dataset.path", spec.path, f"is {what}", f"name a file that ends in {ENDINGS}")
        if reader is not None:
            raise UserError("dataset.path", spec.path, "no such file", "check the name and the current folder")
        return f"{spec.path} ({spec.split})", "row", _numbered(self._hub)

    def _check_unchanged(self, path: Path) -> None:
        about = path.stat()
        state = (about.st_size, about.st_mtime_ns, about.st_ino)
        if (self._state or state) != state:
            raise UserError("dataset.path", path, "changed while it was being read", "run the command again")
        self._state = state

    @cached_property
    def _hub(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.spec.path, split=self.spec.split)
        except Exception as error:  # the Hub's client raises many kinds, of several libraries
            problem = f"not a local file, and the Hub reports for split {self.spec.split}: {first_line(error)}"
            hint = "set it to a local file or a Hub dataset that you can access, with HF_TOKEN for a gated one"
            raise UserError("dataset.path", self.spec.path, problem, hint) from error


def _numbered(rows: Any) -> Iterator[Numbered]:
    return (Numbered(number, row) for number, row in enumerate(rows, 1))
