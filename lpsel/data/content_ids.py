"""Compute the content ids of a data set and find rows without answers, by column where the source allows it."""

# N rows, U distinct contents
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from json.encoder import encode_basestring as quoted
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lpsel.data.column_forms import Form
from lpsel.data.example import ANSWERED, EMPTY_ANSWERS, ID_BYTES
from lpsel.data.parquet import batches
from lpsel.data.turns import LIST_OF_OBJECTS

if TYPE_CHECKING:
    from lpsel.data.dataset import Source

ROWS_PER_BLOCK = 65_536
MAX_WORKERS = 8  # each uses about 150 MB
ROWS_WORTH_WORKERS = 1_000_000  # minimum number of rows for workers, which take half a second to start
ESCAPED = r'["\\\x00-\x1f]'
WHITE_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
HEX_PAIRS = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)  # the two hexadecimal digits of every byte


class Scan(NamedTuple):
    """The results of one pass over a source.

    Attributes:
        ids: content ids, an Arrow array (N,).
        answers: `Example.answers` of every row, uint8 (N,); 0 for unusable rows.
        unusable: the kind of every unusable row, null for usable ones, an Arrow array (N,); None if all are usable.
    """

    ids: pa.LargeStringArray
    answers: NDArray[np.uint8]
    unusable: pa.DictionaryArray | None


class Block(NamedTuple):
    """A block of rows: their concatenated digests, and one byte per row with its `Example.answers`."""

    digests: bytes
    answers: bytes


class Contents(NamedTuple):
    """The distinct contents of the usable rows.

    Attributes:
        ids: distinct content ids in ascending order, (U,).
        position: position of each row's id in `ids`, int32 (N,); -1 for unusable rows.
    """

    ids: pa.Array
    position: NDArray[np.int32]


def scan(source: "Source") -> Scan:
    """Read a source once and compute its content ids."""
    unusable: dict[int, str] = {}
    blocks = _by_column(source) or list(_by_row(source, unusable))
    answers_N = np.frombuffer(b"".join(block.answers for block in blocks), np.uint8)
    return Scan(id_array(block.digests for block in blocks), answers_N, kinds_array(unusable, len(answers_N)))


def kinds_array(kinds: Mapping[int, str], n: int) -> pa.DictionaryArray | None:
    """Convert the kinds of unusable rows by row number to an Arrow array (n,), null for usable rows; None if empty."""
    if not kinds:
        return None
    names = sorted(set(kinds.values()))
    code_N = np.full(n, -1, np.int32)
    code_N[list(kinds)] = [names.index(kind) for kind in kinds.values()]
    return pa.DictionaryArray.from_arrays(pa.array(code_N, mask=code_N < 0), pa.array(names))


def first_kinds(a: pa.Array | None, b: pa.Array | None) -> pa.Array | None:
    """Merge two arrays of kinds of unusable rows; the first takes precedence."""
    if a is None or b is None:
        return b if a is None else a
    return pc.coalesce(a.cast(pa.string()), b.cast(pa.string()))


def counts(unusable: pa.Array | None) -> dict[str, int]:
    """Count unusable rows by kind, most frequent first."""
    if unusable is None:
        return {}
    rows = {item["values"]: item["counts"] for item in pc.value_counts(unusable.drop_null()).to_pylist()}
    return dict(sorted(rows.items(), key=lambda item: (-item[1], item[0])))


def listed(kinds: Mapping[str, int]) -> str:
    """Format counts by kind as text."""
    return ", ".join(f"{kind} ({count:,})" for kind, count in kinds.items())


def id_array(blocks: Iterable[bytes]) -> pa.LargeStringArray:
    """Convert blocks of concatenated digests to hexadecimal ids."""
    pairs = [HEX_PAIRS[np.frombuffer(block, np.uint8)] for block in blocks]
    digits = np.concatenate(pairs) if pairs else np.empty(0, np.uint16)
    n = len(digits) // ID_BYTES
    offsets = np.arange(n + 1, dtype=np.int64) * (2 * ID_BYTES)
    return pa.LargeStringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(digits))


def fingerprint(ids: pa.LargeStringArray) -> str:
    """Return the SHA-256 of the ids joined by newlines."""
    lines = np.full((len(ids), 2 * ID_BYTES + 1), ord("\n"), np.uint8)
    lines[:, :-1] = np.frombuffer(ids.buffers()[2], np.uint8).reshape(len(ids), -1)
    return hashlib.sha256(lines.reshape(-1)[:-1].data).hexdigest()


def contents_of(ids: pa.Array, unusable: pa.Array | None = None) -> Contents:
    """Find the distinct contents among the ids of N rows; unusable rows are excluded."""
    if unusable is not None:
        ids = pc.if_else(unusable.is_null(), ids, None)
    encoded = ids.dictionary_encode()
    order_U = pc.sort_indices(encoded.dictionary)
    position_U = np.full(len(order_U) + 1, -1, np.int32)  # the index of unusable rows, -1, reads the last entry
    position_U[order_U.to_numpy()] = np.arange(len(order_U))
    return Contents(encoded.dictionary.take(order_U), position_U[encoded.indices.fill_null(-1).to_numpy()])


def text_form(source: "Source", schema: pa.Schema) -> Form | None:
    """Return the form of a Parquet file's rows if there is only one, and its columns are all text; otherwise None."""
    forms = source.forms(tuple(schema.names))
    if len(forms) != 1 or source.spec.system != "keep":
        return None
    form = forms[0]
    if form.tools or form.media or form.exclusions:
        return None
    texts = (pa.string(), pa.large_string())
    return form if all(field.role and schema.field(field.column).type in texts for field in form.fields) else None


def _by_row(source: "Source", unusable: dict[int, str]) -> Iterator[Block]:
    """Yield the rows in blocks, to limit the number of Python objects in memory; add unusable rows to `unusable`."""
    digests, answers = list[bytes](), bytearray()
    for index, raw, example, kind in source:
        if kind is None:
            digests.append(example.content_digest())
            answers.append(example.answers())
        else:
            unusable[index] = kind
            digests.append(raw_digest(raw))
            answers.append(ANSWERED)
        if len(answers) == ROWS_PER_BLOCK:
            yield Block(b"".join(digests), bytes(answers))
            digests, answers = [], bytearray()
    yield Block(b"".join(digests), bytes(answers))


def raw_digest(raw: Mapping[str, Any]) -> bytes:
    """Return the digest of an unusable row, computed from its columns since it has no content."""
    text = json.dumps(raw, sort_keys=True, default=_stable_text)
    return hashlib.sha256(f"unusable:{text}".encode()).digest()[:ID_BYTES]


def _stable_text(value: Any) -> str:
    """Convert a value that is not JSON to text, without the memory address in the repr of some objects."""
    return type(value).__name__ if type(value).__str__ is object.__str__ else str(value)


class _Group(NamedTuple):
    """A range of rows in a row group of a file."""

    path: Path
    form: Form
    number: int
    rows: range


def _by_column(source: "Source") -> list[Block]:
    """Read Parquet files with text columns by column, one block per row group.

    Returns no blocks for other sources, and if a prompt may be a list of turns as text: these are read by row.
    """
    blocks: list[Block] = []
    for block in _blocks(_row_groups(source)):
        if block is None:
            return []
        blocks.append(block)
    return blocks


def _row_groups(source: "Source") -> list[_Group]:
    """List the row groups with rows of the source; empty unless all files are Parquet with text columns."""
    if not source.parquet_files:
        return []
    next(iter(source))  # checks the file and its form
    groups, end = list[_Group](), 0
    for path in source.parquet_files:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        form = text_form(source, schema)
        if form is None:
            return []
        for number in range(metadata.num_row_groups):
            start, end = end, end + metadata.row_group(number).num_rows
            first, stop = max(source.spec.skip, start), end if source.stop is None else min(source.stop, end)
            if first < stop:
                groups.append(_Group(path, form, number, range(first - start, stop - start)))
    return groups


def _blocks(groups: list[_Group]) -> Iterator[Block | None]:
    """Yield `_block` of every group, computed by worker processes if there are many rows."""
    workers = min(os.cpu_count() or 1, len(groups), MAX_WORKERS)
    if sum(len(group.rows) for group in groups) < ROWS_WORTH_WORKERS or workers == 1:
        yield from map(_block, groups)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_block, groups)


def _block(group: _Group) -> Block | None:
    """Compute the block of a row group; None if a prompt may be a list of turns as text."""
    path, form, number, rows = group
    digests, answers = list[bytes](), list[bytes]()
    columns = list(dict.fromkeys(field.column for field in form.fields))
    prompts = [field.column for field in form.fields if field.turns and field.role == "user"]
    start = 0
    for batch in batches(path, columns=columns, groups=[number]):
        first, stop = max(rows.start - start, 0), min(rows.stop - start, len(batch))
        start += len(batch)
        if first >= stop:
            continue
        part = batch.slice(first, stop - first)
        if any(pc.any(pc.match_substring_regex(part.column(name), LIST_OF_OBJECTS)).as_py() for name in prompts):
            return None
        digests.append(_digests(_contents(part, form)))
        answers.append(_answers(part, form).tobytes())
    return Block(b"".join(digests), b"".join(answers))


def _digests(contents: pa.LargeStringArray) -> bytes:
    sha256 = hashlib.sha256
    ends = np.frombuffer(contents.buffers()[1], np.int64)[: len(contents) + 1].tolist()
    data = memoryview(contents.buffers()[2])
    return b"".join([sha256(data[start:end]).digest()[:ID_BYTES] for start, end in pairwise(ends)])


def _answers(batch: pa.RecordBatch, form: Form) -> NDArray[np.uint8]:
    """Compute `Example.answers` of every row."""
    answer = next(field.column for field in form.fields if field.role == "assistant")  # the only one
    has_text = pc.match_substring_regex(batch.column(answer), f"[^{WHITE_SPACE}]").fill_null(False)
    return np.where(has_text.to_numpy(zero_copy_only=False), ANSWERED, EMPTY_ANSWERS).astype(np.uint8)


def _contents(batch: pa.RecordBatch, form: Form) -> pa.LargeStringArray:
    """Build the JSON that `Example.content_digest` hashes, for every row."""
    extra: pa.Array | str = ""
    turns = []
    for field in form.fields:
        text = _quoted(batch.column(field.column))
        if field.role == "input":
            extra = text
            continue
        turn = _concatenate(f'["{field.role}","', text, '"]')
        turns.append(pc.if_else(pc.equal(text, ""), None, turn) if field.optional else turn)
    all_turns = pc.binary_join_element_wise(*turns, pa.scalar(",", pa.large_string()), null_handling="skip")
    return _concatenate('{"input":"', extra, '","turns":[', all_turns, "]}")


def _concatenate(*parts: pa.Array | str) -> pa.LargeStringArray:
    """Concatenate columns and constant texts row by row."""
    separator = ""
    texts = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in (*parts, separator)]
    return pc.binary_join_element_wise(*texts)


def _quoted(texts: pa.Array) -> pa.Array:
    """Escape texts like json.dumps(ensure_ascii=False), without quotation marks; null becomes empty."""
    texts = texts.cast(pa.large_string()).fill_null("")
    if not pc.any(pc.match_substring_regex(texts, ESCAPED)).as_py():
        return texts
    for character in ["\\", '"', *map(chr, range(32))]:  # the backslash first: the other escapes contain one
        if pc.any(pc.match_substring(texts, character)).as_py():
            texts = pc.replace_substring(texts, character, quoted(character)[1:-1])
    return texts
