"""Content ids of a whole data set, as an Arrow array, quickly enough for ten million rows."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, islice, pairwise
from json.encoder import encode_basestring as quoted
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpsel.data.dataset import ID_BYTES, Source
from lpsel.data.parquet import batches

ROWS_AT_ONCE = 65_536
WORKERS = 8  # at most, of some 150 MB each
ROWS_WORTH_WORKERS = 1_000_000  # further processes take half a second to start
ESCAPED = r'["\\\x00-\x1f]'
AROUND = [
    pa.scalar(text, pa.large_string()) for text in ('{"input":"', '","turns":[["user","', '"],["assistant","', '"]]}')
]
EMPTY = NOTHING = pa.scalar("", pa.large_string())
HEX_PAIRS = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)  # the two digits of every byte


def ids_of(source: Source) -> pa.LargeStringArray:
    """The content id of every row of a source, in order."""
    return id_array(_by_column(source) or _in_blocks(row.example.content_digest() for row in source))


def id_array(blocks: Iterable[bytes]) -> pa.LargeStringArray:
    """Digests, one behind the other in blocks of any number, as hexadecimal digits."""
    pairs = [HEX_PAIRS[np.frombuffer(block, np.uint8)] for block in blocks]
    digits = np.concatenate(pairs) if pairs else np.empty(0, np.uint16)
    n = len(digits) // ID_BYTES
    offsets = np.arange(n + 1, dtype=np.int64) * (2 * ID_BYTES)
    return pa.LargeStringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(digits))


class Contents(NamedTuple):
    """The different contents of N rows.

    Attributes:
        ids: content ids in ascending order, U of them.
        place: where each row's stands there, int32 (N,).
    """

    ids: pa.Array
    place: NDArray[np.int32]


def contents_of(ids: pa.Array) -> Contents:
    """The different ones among the ids of N rows."""
    encoded = ids.dictionary_encode()
    order_U = pc.sort_indices(encoded.dictionary)
    place_U = np.empty(len(order_U), np.int32)
    place_U[order_U.to_numpy()] = np.arange(len(order_U))
    return Contents(encoded.dictionary.take(order_U), place_U[encoded.indices.to_numpy()])


def _in_blocks(digests: Iterator[bytes]) -> Iterator[bytes]:
    """Digests joined in blocks, so that no more than a block of them are objects of their own at once."""
    while block := b"".join(islice(digests, ROWS_AT_ONCE)):
        yield block


def fingerprint(ids: pa.LargeStringArray) -> str:
    """SHA-256 of the ids, a newline between each two."""
    lines = np.full((len(ids), 2 * ID_BYTES + 1), ord("\n"), np.uint8)
    lines[:, :-1] = np.frombuffer(ids.buffers()[2], np.uint8).reshape(len(ids), -1)
    return hashlib.sha256(lines.reshape(-1)[:-1].data).hexdigest()


def text_columns(source: Source, schema: pa.Schema) -> dict[str, str] | None:
    """Our field -> the column of a Parquet file that holds it, where all of them hold texts; else None."""
    fields = source.columns_of(dict.fromkeys(schema.names))
    there = {field: column for field, column in fields.items() if column in schema.names}
    texts = (pa.string(), pa.large_string())
    return there if all(schema.field(column).type in texts for column in there.values()) else None


def _by_column(source: Source) -> Iterator[bytes] | None:
    """Digests without a row at a time, where the source is a Parquet file of texts, else None."""
    import pyarrow.parquet as pq

    spec = source.spec
    if not source.is_parquet:
        return None
    assert spec.path is not None
    path = Path(spec.path).expanduser()
    next(iter(source))  # finds what is wrong with the file or its form, and says so
    with pq.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        groups = [metadata.row_group(place).num_rows for place in range(metadata.num_row_groups)]
    fields = text_columns(source, schema)
    if fields is None:
        return None
    rows = range(spec.skip, sum(groups) if source.stop is None else source.stop)
    return _parquet_digests(path, fields, groups, rows)


def _parquet_digests(path: Path, fields: dict[str, str], groups: list[int], rows: range) -> Iterator[bytes]:
    """The digests of some rows of a Parquet file, a block for every row group, of `groups` rows, that has some."""
    parts, end = [], 0
    for place, size in enumerate(groups):
        start, end = end, end + size
        if wanted := range(max(rows.start, start), min(rows.stop, end)):
            parts.append((place, range(wanted.start - start, wanted.stop - start)))
    digests = partial(_group_digests, path, fields)
    workers = min(os.cpu_count() or 1, len(parts), WORKERS)
    if len(rows) < ROWS_WORTH_WORKERS or workers == 1:
        yield from map(digests, parts)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(digests, parts)


def _group_digests(path: Path, fields: dict[str, str], part: tuple[int, range]) -> bytes:
    """As `Example.content_digest` has it for a question and its answer; null counts as empty."""
    group, rows = part
    names = ("input", "prompt", "completion") if "prompt" in fields else ("input", "instruction", "output")
    sha256, size, start, blocks = hashlib.sha256, ID_BYTES, 0, []
    for batch in batches(path, columns=list(dict.fromkeys(fields.values())), groups=[group]):
        taken = range(max(rows.start - start, 0), min(rows.stop - start, len(batch)))
        start += len(batch)
        if taken:
            batch = batch.slice(taken.start, len(taken))
            texts = [_quoted(batch.column(fields[name])) if name in fields else EMPTY for name in names]
            contents = pc.binary_join_element_wise(*chain(*zip(AROUND, texts, strict=False)), AROUND[-1], NOTHING)
            ends = np.frombuffer(contents.buffers()[1], np.int64)[: len(contents) + 1].tolist()
            data = memoryview(contents.buffers()[2])
            blocks.append(b"".join([sha256(data[a:b]).digest()[:size] for a, b in pairwise(ends)]))
    return b"".join(blocks)


def _quoted(texts: pa.Array) -> pa.Array:
    """Every text as json.dumps(ensure_ascii=False) writes it, without the marks around."""
    texts = texts.cast(pa.large_string()).fill_null("")
    if not pc.any(pc.match_substring_regex(texts, ESCAPED)).as_py():
        return texts
    for character in ["\\", '"', *map(chr, range(32))]:  # the backslash first: the others bring some of their own
        if pc.any(pc.match_substring(texts, character)).as_py():
            texts = pc.replace_substring(texts, character, quoted(character)[1:-1])
    return texts
