"""Datasets: rows streamed from local files, the Hub or the embedded generator, with a content id for every row."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lpsel.data.column_forms import Form, choose_form, forms_of, mapped_form, to_example
from lpsel.data.example import EMPTY_ANSWERS, NO_ANSWER, Example, merge_system
from lpsel.data.formats import Numbered, Part, reader_of
from lpsel.data.paths import file_state, hub_commit, hub_error, is_hub_id, local_files
from lpsel.errors import UnusableRow, UserError, check_choice, check_flag, check_int, skipped

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from lpsel.data.content_ids import Contents, Scan

log = logging.getLogger(__name__)
NO_CONTENT = Example(())


class Row(NamedTuple):
    """A row of a dataset."""

    index: int  # type: ignore[assignment]  # counted from 0 after `dataset.skip` rows; shadows tuple.index
    raw: dict[str, Any]  # the row as in the source
    example: Example  # the row as a conversation; without turns if it is unusable
    unusable: str | None = None  # why the row cannot be used (`UnusableRow.kind`)


@dataclass(frozen=True)
class DatasetSpec:
    """Specifies the source of a dataset and which of its rows to use.

    Attributes:
        name: name shown in results and folder names.
        path: local file, folder, glob, a list of these, or a Hub id; null for the embedded generator.
        split: split of a Hub dataset or the generator; in a .json file, the key of the list (or "data"); in a folder,
            selects files named after the split, if there are any.
        revision: branch, tag or commit of a Hub dataset.
        streaming: read a Hub dataset without storing it; local files are always streamed.
        system: `keep` system turns, or `merge` each into the user turn after it.
        columns: maps our fields to columns with other names. Fields: instruction, input and output; prompt and
            completion; messages; conversations.
        skip: number of rows to skip at the beginning.
        limit: maximum number of rows to use after skipping.
        bad_rows: `error` to stop at the first unusable row; `skip` to leave out unusable rows, which keep their number.
        cluster_column: a column with cluster names.
        license: license of the rows, as an identifier of the Hub.
        synthetic: arguments of `lpsel.toy.data.generate`, used if path is null.
    """

    name: str
    path: str | list[str] | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    system: str = "keep"
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
        if self.revision is not None and not is_hub_id(self.path):
            raise UserError("dataset.revision", self.revision, "dataset.path is not on the Hub", "leave it out")
        check_flag("dataset.streaming", self.streaming)
        check_choice("dataset.system", self.system, ("keep", "merge"))
        check_int("dataset.skip", self.skip, 0)
        check_choice("dataset.bad_rows", self.bad_rows, ("error", "skip"))
        if self.limit is not None:
            check_int("dataset.limit", self.limit, 1, hint="set it to null for all rows")
        if self.columns is not None and self.columns != {}:
            mapped_form(self.columns)


class Source:
    """An iterable over the rows of a dataset, which are streamed on every pass and never all in memory.

    Content ids are computed once, in the first pass, and later looked up by row number.

    Raises:
        UserError: a file or Hub dataset is missing, no row is usable, or a file changes between two passes.
        UnusableRow: a row is unusable and bad_rows=error.
    """

    def __init__(self, spec: DatasetSpec, option: str = "dataset") -> None:
        self.spec = spec
        self.option = option  # the option that sets the spec, for error messages
        self._scanned: Scan | None = None
        self._states: dict[Path, tuple[int, ...]] = {}  # `file_state` of each file in the first pass
        mapped = [mapped_form(spec.columns)] if spec.columns else None
        # The forms that match a row's columns; only one with `dataset.columns`.
        self.forms: Callable[[tuple[str, ...]], tuple[Form, ...]] = lru_cache(256)(partial(forms_of, forms=mapped))

    def __iter__(self) -> Iterator[Row]:
        index = -1
        for index, (part, number, raw) in enumerate(self._located_rows()):
            if isinstance(raw, UnusableRow):
                yield Row(index, {}, NO_CONTENT, self.skipped(raw, ""))
                continue
            try:
                example, unusable = self._example(raw), None
            except UnusableRow as error:
                example, unusable = NO_CONTENT, self.skipped(error, part.at(number))
            except UserError as error:
                raise error.at(part.at(number)) from None
            yield Row(index, raw, example, unusable)
        if index < 0:
            after = f" after dataset.skip={self.spec.skip}" if self.spec.skip else ""
            raise UserError(self._location, None, f"no rows{after}", "set dataset.path to a dataset with rows")

    def raw_rows(self) -> Iterator[dict[str, Any] | UnusableRow]:
        """Return the rows as in the source without interpreting columns; for an invalid line, its error."""
        return (raw for _, _, raw in self._located_rows())

    def _located_rows(self) -> Iterator[tuple[Part, int, dict[str, Any] | UnusableRow]]:
        """Return the rows after `skip` and up to `limit`, each with its file and its number in the file."""
        rows = ((part, number, raw) for part in self._parts() for number, raw in part.rows)
        return islice(rows, self.spec.skip, self.stop)

    @property
    def stop(self) -> int | None:
        """The source row at which to stop; None to read to the end."""
        return None if self.spec.limit is None else self.spec.skip + self.spec.limit

    def example(self, raw: dict[str, Any]) -> Example:
        """Convert a row to an example; without turns if the row is skipped."""
        try:
            return self._example(raw)
        except UnusableRow as error:
            self.skipped(error, self.spec.name)
            return NO_CONTENT

    def _example(self, raw: dict[str, Any]) -> Example:
        forms = self.forms(tuple(raw))
        form = forms[0] if len(forms) == 1 else choose_form(forms, raw, self.spec.columns, self.option)
        example = to_example(raw, form)
        column = self.spec.cluster_column
        if column is not None and str(column) not in raw:
            problem = f"no such column, the row has {', '.join(raw) or 'none'}"
            raise UserError("dataset.cluster_column", column, problem, "name one of these, or null")
        return example if self.spec.system == "keep" else merge_system(example)

    def skipped(self, error: UnusableRow, location: str) -> str:
        """Apply `lpsel.errors.skipped` with the settings of this dataset."""
        return skipped(error, location, self.spec.bad_rows, self.option)

    def check_skipped(self, unusable: "pa.Array | None") -> None:
        """Raise an error for the first unusable row, which an earlier run with bad_rows=skip found, if bad_rows=error.

        Args:
            unusable: kinds of unusable rows (N,), null for usable ones; None if all are usable.
        """
        if unusable is None or self.spec.bad_rows == "skip":
            return
        row = unusable.is_valid().index(True).as_py()
        self.skipped(UnusableRow("unusable row", problem=unusable[row].as_py()), self.location(row))

    def location(self, index: int) -> str:
        """Return the file and line of a row, for error messages."""
        part, number, _ = next(islice(self._located_rows(), index, None))
        return part.at(number)

    @property
    def _scan(self) -> "Scan":
        from lpsel.data.content_ids import scan

        if self._scanned is None:
            self._scanned = scan(self)
            self.report_unusable()
        return self._scanned

    def report_unusable(self) -> None:
        """Log how many rows are skipped, if the rows have been read; raises a UserError if all are unusable."""
        from lpsel.data.content_ids import counts, listed

        kinds = {} if self._scanned is None else counts(self._scanned.unusable)
        if not kinds:
            return
        n, unusable, name = len(self), sum(kinds.values()), self.spec.name
        if unusable == n:
            problem = f"none of {n:,} rows can be used: {listed(kinds)}"
            raise UserError("dataset", name, problem, "convert them, or use other data")
        log.info(f"Rows: {unusable:,} of {n:,} rows of {name} are unusable and skipped: {listed(kinds)}")

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
        """Whether the answers of each row are empty or white space, bool (N,)."""
        return self._scan.answers == EMPTY_ANSWERS

    @property
    def no_answer(self) -> "NDArray[np.bool_]":
        """Whether each row is usable but has no answer to train on, bool (N,)."""
        return self._scan.answers == NO_ANSWER

    @cached_property
    def contents(self) -> "Contents":
        """The distinct contents of the usable rows."""
        from lpsel.data.content_ids import contents_of

        return contents_of(self.ids, self.unusable)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids in order: the same for the same rows, whatever the file, column form or name."""
        from lpsel.data.content_ids import fingerprint

        return fingerprint(self.ids)

    @cached_property
    def commit(self) -> str | None:
        """The commit of a Hub dataset, which all passes use; None if it is unknown or the dataset is not on the Hub."""
        return hub_commit(str(self.spec.path), self.spec.revision) if is_hub_id(self.spec.path) else None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def files(self) -> list[Path]:
        """The local files; empty for the Hub and the embedded generator."""
        path = self.spec.path
        if path is None or (self.spec.streaming and isinstance(path, str) and Path(path).expanduser().is_dir()):
            return []
        return local_files(path, self.spec.split)

    @property
    def parquet_files(self) -> list[Path]:
        """The local files if all of them are Parquet; otherwise empty."""
        return self.files if all(file.suffix.lower() == ".parquet" for file in self.files) else []

    @property
    def _location(self) -> str:
        spec = self.spec
        if spec.path is None:
            return f"dataset {spec.name}"
        if self.files:
            return str(self.files[0]) if len(self.files) == 1 else f"dataset.path={spec.path}"
        return f"{spec.path} ({spec.split})"

    def _parts(self) -> Iterator[Part]:
        spec = self.spec
        if spec.path is None:
            from lpsel.toy.data import generate

            rows = generate(split=spec.split, **(spec.synthetic or {}))
            yield Part(self._location, "row", map(Numbered, count(1), rows))
        elif not self.files:
            yield Part(self._location, "row", map(Numbered, count(1), self._hub_rows()))
        for path in self.files:
            reader = reader_of(str(path))
            assert reader is not None  # ensured by local_files
            self._check_unchanged(path)
            yield Part(str(path), reader.unit, reader.read(path, spec.split))

    def state(self) -> Any:
        """Return a value that changes when the rows change: files with size, time and inode, or the commit."""
        return [(path, file_state(path)) for path in self.files] or self.commit

    def _check_unchanged(self, path: Path) -> None:
        state = file_state(path)
        if state is None or self._states.setdefault(path, state) != state:
            raise UserError("dataset.path", path, "changed while it was being read", "run the command again")

    @cached_property
    def _hub(self) -> Any:
        from datasets import load_dataset

        return load_dataset(self.spec.path, split=self.spec.split, streaming=self.spec.streaming, revision=self.commit)

    def _hub_rows(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._hub
        except Exception as error:  # the Hub's client raises exceptions of several libraries
            raise hub_error(self.spec.path, self.spec.split, error) from error
