"""Rows of instruction data from a file, the Hub or the embedded generator, streamed, with content ids.

Whatever form a row comes in, it becomes an `Example`: turns of a conversation, and Alpaca's extra input.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lpsel.data.formats import ENDINGS, Numbered, reader_of
from lpsel.errors import UserError, is_int

if TYPE_CHECKING:
    import pyarrow as pa

ID_BYTES = 16  # of a SHA-256, so that an id is 32 hexadecimal digits
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
# Our field -> the column that holds it. The first form whose required fields a row has is taken.
FORMS: tuple[dict[str, str], ...] = (
    {"messages": "messages"},
    {"conversations": "conversations"},
    {"prompt": "prompt", "completion": "completion"},
    {"instruction": "instruction", "input": "input", "output": "output"},
    {"instruction": "instruction", "input": "context", "output": "response"},  # Dolly
)
OPTIONAL = {"input"}


class Turn(NamedTuple):
    """What one side said. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row, whatever form it came in. `input` is Alpaca's extra input and belongs to the first user turn."""

    turns: tuple[Turn, ...]
    input: str = ""

    def content_id(self) -> str:
        """32 hexadecimal digits of the SHA-256 of what is trained on; the same on every machine and in every form."""
        return self.content_digest().hex()

    def content_digest(self) -> bytes:
        """The 16 bytes of `content_id`: of the JSON, without spaces, {"input":...,"turns":[[role,content],...]}."""
        turns = ",".join([f"[{quoted(role)},{quoted(content)}]" for role, content in self.turns])
        return hashlib.sha256(f'{{"input":{quoted(self.input)},"turns":[{turns}]}}'.encode()).digest()[:ID_BYTES]

    def instruction(self) -> str:
        """What the user says first."""
        return next((turn.content for turn in self.turns if turn.role == "user"), "")

    def characters(self) -> tuple[int, int]:
        """Characters of the prompt, which is all that is not the assistant's, and of the response."""
        prompt, response = len(self.input), 0
        for role, content in self.turns:
            if role == "assistant":
                response += len(content)
            else:
                prompt += len(content)
        return prompt, response

    def embedding_text(self) -> str:
        """What is embedded for clustering: `Instruction: {instruction} {input} Response: {output}`, fields stripped.

        As released with the paper; the turns of either side of a longer conversation are joined by a space.
        """
        instruction, output = (
            " ".join(turn.content.strip() for turn in self.turns if turn.role == role) for role in ("user", "assistant")
        )
        return f"Instruction: {instruction} {self.input.strip()} Response: {output}"


class Row(NamedTuple):
    """`index` counts the rows of this source from 0, after skip; `raw` is the row as the source has it."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here needs
    raw: dict[str, Any]
    example: Example


@dataclass(frozen=True)
class DatasetSpec:
    """Where rows come from and which of them are taken.

    Attributes:
        name: shown in results and folder names.
        path: local file or Hub id; null for the embedded generator.
        split: of a Hub data set or of the generator; in a .json file, the name of its list (or "data").
        columns: our field -> the source's column, for columns with other names. Fields: instruction, input and
            output; prompt and completion; messages; conversations.
        skip: rows left out at the beginning.
        limit: at most so many rows after those.
        cluster_column: a column of the source that names clusters.
        license: of the rows, as the Hub names it.
        synthetic: arguments of `lpsel.toy.data.generate`, used when path is null.
    """

    name: str
    path: str | None = None
    split: str = "train"
    columns: dict[str, str] | None = None
    skip: int = 0
    limit: int | None = None
    cluster_column: str | None = None
    license: str | None = None
    synthetic: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.synthetic is None:
            raise UserError(f"dataset {self.name}: no path; give dataset.path=FILE_OR_HUB_ID.")
        if self.path is not None and self.synthetic is not None:
            raise UserError(
                f"dataset.path={self.path}: {self.name} is made from a seed and has none; say dataset=local."
            )
        if not is_int(self.skip) or self.skip < 0:
            raise UserError(f"dataset.skip={self.skip}: must be 0 or more rows.")
        if self.limit is not None and (not is_int(self.limit) or self.limit < 1):
            raise UserError(f"dataset.limit={self.limit}: must be at least 1 row, or null for all.")
        if self.columns is not None and not isinstance(self.columns, Mapping):
            raise UserError(
                f"dataset.columns={self.columns}: must say which column is which, as in "
                "dataset.columns={instruction: question, output: answer}."
            )
        if self.columns and not any(form.keys() - OPTIONAL <= self.columns.keys() <= form.keys() for form in FORMS):
            raise UserError(
                f"dataset.columns={dict(self.columns)}: must name instruction and output (and input), prompt and "
                "completion, messages, or conversations, as in dataset.columns={instruction: question, output: answer}."
            )


class Source:
    """The rows of a data set, read anew on every iteration and never all held.

    Raises:
        UserError: no such file or Hub data set, a row that cannot be read (with file and line), columns of no known
            form, no rows at all.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        self.spec = spec

    def __iter__(self) -> Iterator[Row]:
        spec = self.spec
        place, unit, rows = self._open()
        index = -1
        columns = spec.columns
        for index, (number, raw) in enumerate(islice(rows, spec.skip, self.stop)):
            try:
                if columns is None:
                    columns = _recognise(raw)
                if spec.cluster_column is not None and spec.cluster_column not in raw:
                    raise UserError(
                        f"dataset.cluster_column={spec.cluster_column}: no such column, found {_names(raw)}; "
                        "name one of these, or null."
                    )
                example = _example(raw, columns, strict=spec.columns is not None)
            except UserError as error:
                raise UserError(f"{place}, {unit} {number}: {error}") from None
            yield Row(index, raw, example)
        if index < 0:
            after = f" after dataset.skip={spec.skip}" if spec.skip else ""
            raise UserError(f"{place}: no rows{after}. Give a data set that has some.")

    def raw_rows(self) -> Iterator[dict[str, Any]]:
        """The rows as the source has them, without a look at what is in them."""
        return (raw for _, raw in islice(self._open()[2], self.spec.skip, self.stop))

    @property
    def stop(self) -> int | None:
        """The row of the file or data set before which the source ends, None for its end."""
        return None if self.spec.limit is None else self.spec.skip + self.spec.limit

    @cached_property
    def ids(self) -> "pa.LargeStringArray":
        """The content id of every row, in order; takes one pass the first time."""
        from lpsel.data.content_ids import ids_of

        return ids_of(self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ids in order: the same for the same rows, whatever file, form or name they have."""
        from lpsel.data.content_ids import fingerprint

        return fingerprint(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def columns_of(self, raw: Mapping[str, Any]) -> Mapping[str, str]:
        """Our field -> the column of a row that holds it."""
        return self.spec.columns or _recognise(raw)

    def example(self, raw: Mapping[str, Any]) -> Example:
        """A row as the source has it, as an example."""
        return _example(raw, self.columns_of(raw), strict=self.spec.columns is not None)

    @property
    def is_parquet(self) -> bool:
        """Whether the rows are those of a local Parquet file."""
        path = self.spec.path
        return path is not None and path.lower().endswith(".parquet") and Path(path).expanduser().is_file()

    def _open(self) -> tuple[str, str, Iterator[Numbered]]:
        """Where rows come from, what they are counted in there, and the rows."""
        spec = self.spec
        if spec.path is None:
            from lpsel.toy.data import generate

            return f"dataset {spec.name}", "row", _numbered(generate(split=spec.split, **(spec.synthetic or {})))
        path = Path(spec.path).expanduser()
        reader = reader_of(spec.path)
        if path.is_file():
            if reader is None:
                raise UserError(f"dataset.path={spec.path}: unknown kind of file, must end in {ENDINGS}.")
            return str(path), reader.unit, reader.read(path, spec.split)
        if path.exists():
            what = "a folder" if path.is_dir() else "no plain file"
            raise UserError(f"dataset.path={spec.path}: is {what}; name a file that ends in {ENDINGS}.")
        if reader is not None:
            raise UserError(f"dataset.path={spec.path}: no such file. Check the name and the folder you start from.")
        return f"{spec.path} ({spec.split})", "row", _numbered(self._hub)

    @cached_property
    def _hub(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.spec.path, split=self.spec.split)
        except Exception as error:  # the Hub's client raises many kinds, of several libraries
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
            raise UserError(
                f"dataset.path={self.spec.path} dataset.split={self.spec.split}: not a file here, and the Hub says: "
                f"{reason}. Name a local file or a Hub data set that you can reach, "
                "with HF_TOKEN in the environment for a gated one."
            ) from error


def _numbered(rows: Any) -> Iterator[Numbered]:
    return (Numbered(number, row) for number, row in enumerate(rows, 1))


def _names(raw: Mapping[str, Any]) -> str:
    return ", ".join(map(str, raw)) or "none"


def _recognise(raw: Mapping[str, Any]) -> dict[str, str]:
    for form in FORMS:
        if all(column in raw for field, column in form.items() if field not in OPTIONAL):
            return form
    raise UserError(
        f"columns {_names(raw)}: none of the known forms. "
        "Say which is which, as in 'dataset.columns={instruction: COLUMN, output: COLUMN}'."
    )


def _example(raw: Mapping[str, Any], columns: Mapping[str, str], strict: bool) -> Example:
    """The row as an example; `strict` where the user named the columns, so that even optional ones must be there."""
    fields = {}
    for field, column in columns.items():
        if column in raw:
            fields[field] = raw[column]
        elif strict or field not in OPTIONAL:
            raise UserError(f"no column {column} in this row, found {_names(raw)}; see dataset.columns.")
    if "messages" in fields:
        return Example(_turns(fields["messages"], columns["messages"], "role", "content"))
    if "conversations" in fields:
        return Example(_turns(fields["conversations"], columns["conversations"], "from", "value"))
    if "prompt" in fields:
        sides = (("prompt", "user"), ("completion", "assistant"))
        return Example(tuple(turn for side, role in sides for turn in _side(fields[side], columns[side], role)))
    instruction, output = (
        Turn(role, _text(fields[field], columns[field]))
        for field, role in (("instruction", "user"), ("output", "assistant"))
    )
    return Example((instruction, output), _text(fields.get("input"), columns.get("input", "input")))


def _side(value: Any, column: str, role: str) -> tuple[Turn, ...]:
    """A prompt or a completion: text, or TRL's list of messages."""
    if isinstance(value, list):
        return _turns(value, column, "role", "content")
    return (Turn(role, _text(value, column)),)


def _turns(value: Any, column: str, role_key: str, content_key: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f"column {column}: must be a list of turns, found {_kind(value)}.")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
            raise UserError(f"column {column}: a turn must have {role_key} and {content_key}.")
        role = turn[role_key]
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise UserError(f"column {column}: {role_key} {role!r} is none of {', '.join(ROLES)}; leave the row out.")
        turns.append(Turn(ROLES[role.lower()], _text(turn[content_key], f"{column}.{content_key}")))
    return tuple(turns)


def _text(value: Any, column: str) -> str:
    """The text of a field; null counts as empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"column {column}: must be text, found {_kind(value)}; convert it to a string.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"column {column}: half of a surrogate pair, not valid Unicode; mend the text.") from None
    return value


def _kind(value: Any) -> str:
    return "an empty list" if value == [] else f"{type(value).__name__} {str(value)[:40]!r}"
