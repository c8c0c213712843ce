"""Tokenize a dataset once, and cache the token ids in a memory-mapped Arrow file."""

# N rows, T tokens of a row (fed to the model, after truncation)
import hashlib
import json
import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lpsel.cache import Entry
from lpsel.console import track
from lpsel.data.apply_template import kind_without_tools
from lpsel.data.content_ids import counts, listed
from lpsel.data.control_tokens import Rendered, control_tokens
from lpsel.data.dataset import Row, Source
from lpsel.data.supervised_tokens import Encoded, supervise_and_truncate
from lpsel.data.templates import render, template_hash
from lpsel.errors import UnusableRow, UserError
from lpsel.storage import write_atomically

log = logging.getLogger(__name__)

ROWS_PER_BATCH = 1024  # of the file and of a call of the tokenizer
MAX_CHARACTERS = 1 << 20  # per call of the tokenizer, which needs a few hundred bytes per token
DATA = "tokens.arrow"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised_spans", pa.list_(pa.int32())),  # start, end, start, end, ... positions in input_ids
        ("prompt_tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("text_omitted", pa.bool_()),
        ("unusable", pa.string()),  # the kind of a skipped row, which has no tokens
    ]
)


class Batch(NamedTuple):
    """The list columns of a record batch as views of the file; row j is offsets[j] to offsets[j + 1]."""

    ids: np.ndarray
    id_offsets: np.ndarray
    spans: np.ndarray
    span_offsets: np.ndarray


class Tokens:
    """The token ids of a dataset in the order of the source, read-only from a memory-mapped file.

    Attributes:
        folder: folder of the cache entry.
        reused: whether the tokens were already in the cache.
        prompt_tokens: number of tokens fed to the model that are not supervised, int32 (N,).
        response_tokens: number of supervised tokens after truncation, int32 (N,).
        truncated: whether the row was longer, bool (N,).
        text_omitted: whether the template leaves out reasoning or a question of the row, bool (N,).
        lengths: number of tokens fed to the model, prompt_tokens + response_tokens, int32 (N,).
        unusable: the kind of every skipped row, null for the others, (N,); None if no row is skipped.
    """

    def __init__(self, folder: Path, reused: bool = True) -> None:
        self.folder = folder
        self.reused = reused
        self._read(pa.ipc.open_file(pa.memory_map(str(folder / DATA))).read_all())

    def _read(self, table: pa.Table) -> None:
        self._table = table
        batches = table.to_batches()
        self._batches = [_views(batch) for batch in batches]
        self._first_rows = np.cumsum([0, *map(len, batches)]).tolist()  # of every batch
        self.prompt_tokens = self._table["prompt_tokens"].to_numpy()
        self.response_tokens = self._table["response_tokens"].to_numpy()
        self.truncated = self._table["truncated"].to_numpy()
        self.text_omitted = self._table["text_omitted"].to_numpy()
        self.lengths = self.prompt_tokens + self.response_tokens
        unusable = self._table["unusable"].combine_chunks()
        self.unusable = None if unusable.null_count == len(unusable) else unusable.dictionary_encode()

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def ids(self) -> pa.StringArray:
        return self._table["id"].combine_chunks()

    def counted(self) -> dict[str, Any]:
        """Return counts of rows for manifests.

        Rows without a supervised token have no answer, or it was truncated. Unusable rows are only counted by kind.
        """
        kinds = counts(self.unusable)
        return {
            "rows": len(self),
            "rows_truncated": int(self.truncated.sum()),
            "rows_without_supervised_token": int((self.response_tokens == 0).sum()) - sum(kinds.values()),
            "rows_unusable": kinds,
        }

    def input_ids(self, i: int) -> np.ndarray:
        """Return the tokens of row i, int32 (T,), as a read-only view of the file."""
        batch, row = self._batch_of(i)
        return batch.ids[batch.id_offsets[row] : batch.id_offsets[row + 1]]

    def batches(self) -> list[Batch]:
        """Return the list columns of all rows, in order."""
        return self._batches

    def supervised(self, i: int) -> np.ndarray:
        """Return which tokens of row i are labels, bool (T,); t - 1 predicts label t, so token 0 is never one."""
        batch, row = self._batch_of(i)
        mask_T = np.zeros(batch.id_offsets[row + 1] - batch.id_offsets[row], dtype=np.bool_)
        spans = batch.spans[batch.span_offsets[row] : batch.span_offsets[row + 1]]
        for start, stop in spans.reshape(-1, 2):
            mask_T[start:stop] = True
        return mask_T

    def _batch_of(self, i: int) -> tuple[Batch, int]:
        """Return the batch with row i, and the number of the row in it."""
        number = bisect_right(self._first_rows, i) - 1
        return self._batches[number], i - self._first_rows[number]


class JoinedTokens(Tokens):
    """The rows of `first`, such as rows to record, then those of `second`, such as other rows to train on."""

    def __init__(self, first: Tokens, second: Tokens) -> None:
        self._read(pa.concat_tables([first._table, second._table]))


def tokenize(source: Source, tokenizer: Any, template: str, max_length: int, cache_dir: Path) -> Tokens:
    """Tokenize every row of `source`, or load the tokens from the cache.

    EOS is appended, and rows are then truncated on the right to `max_length`, as in the code released with the paper:
    a long row loses its end, or its whole answer. With `dataset.bad_rows=skip`, a row that is unusable or rejected by
    the template has no tokens.

    Args:
        tokenizer: a fast tokenizer of transformers with an EOS token.
        template: alpaca, chat or plain, see `lpsel.data.templates`.
        cache_dir: folder of the cache; processes that need the same tokens wait for the first of them.

    Raises:
        UserError: the tokenizer is slow or has no EOS, the template is unsuitable or rejects all rows, the cache is not
            writable, or `Source` raises it.
        UnusableRow: the template rejects a row, and `dataset.bad_rows=error`.
    """
    entry = _entry(source, tokenizer, template, max_length, cache_dir)
    with entry.locked():
        reused = entry.find() is not None
        if not reused:
            write_atomically(entry.folder / DATA, lambda file: _write(file, source, tokenizer, template, max_length))
            entry.commit([DATA], rows=len(source))
    tokens = Tokens(entry.folder, reused)
    source.check_skipped(tokens.unusable)
    _check_any_usable(tokens, source.spec.name, template)
    omitted = int(tokens.text_omitted.sum())
    if omitted:
        log.warning("template=%s leaves out reasoning or turns of %s of %s rows", template, omitted, len(tokens))
    return tokens


def _check_any_usable(tokens: Tokens, dataset: str, template: str) -> None:
    kinds = counts(tokens.unusable)
    if sum(kinds.values()) == len(tokens):
        problem = f"template={template} can use none of {len(tokens):,} rows: {listed(kinds)}"
        hint = "set template=alpaca, or use other data" if template == "chat" else "use other data"
        if kind_without_tools(template) in kinds:
            hint = "set template=chat and a model whose chat template supports tools, or use other data"
        raise UserError("dataset", dataset, problem, hint)


def find_tokens(source: Source, tokenizer: Any, template: str, max_length: int, cache_dir: Path) -> Tokens | None:
    """Return the tokens if they are in the cache, otherwise None."""
    entry = _entry(source, tokenizer, template, max_length, cache_dir)
    return None if entry.find() is None else Tokens(entry.folder)


def count_tokens(
    source: Source, rows: Sequence[Row], tokenizer: Any, template: str, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count the tokens fed to the model and the supervised tokens of rows, as `tokenize` would, int32 (N,) each."""
    encoded = list(_encoded(source, rows, tokenizer, template, max_length))
    return np.array([len(row.ids) for row in encoded], np.int32), _response_tokens(encoded)


def _entry(source: Source, tokenizer: Any, template: str, max_length: int, cache_dir: Path) -> Entry:
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer of {name}", None, "must be a fast tokenizer", "convert it to a tokenizer.json")
    if tokenizer.eos_token_id is None:
        hint = "set eos_token in its tokenizer_config.json"
        raise UserError(f"tokenizer of {name}", None, "has no end-of-sequence token", hint)
    key = {
        "data": source.fingerprint,
        "tokenizer": tokenizer_hash(tokenizer),
        "template": template_hash(template, tokenizer),
        "max_length": max_length,
    }
    return Entry.of(cache_dir, "tokens", key)


def _write(file: Any, source: Source, tokenizer: Any, template: str, max_length: int) -> None:
    first = 0
    with track("Tokenizing", total=len(source), unit="rows") as advance, pa.ipc.new_file(file, SCHEMA) as written:
        encoded = _encoded(source, source, tokenizer, template, max_length)
        while rows := list(islice(encoded, ROWS_PER_BATCH)):
            ids = source.ids.slice(first, len(rows)).cast(pa.string())
            written.write_batch(_record_batch(ids, rows))
            first += len(rows)
            advance(len(rows), tokens=sum(len(row.ids) for row in rows))


def tokenizer_hash(tokenizer: Any) -> str:
    """Return the SHA-256 of everything that token ids depend on: the fast tokenizer's backend and special tokens."""
    state = tokenizer.backend_tokenizer.to_str()
    state = state[state.index('"added_tokens"') :]  # skips truncation and padding, which are set per call
    special = json.dumps([tokenizer.special_tokens_map, tokenizer.eos_token_id], sort_keys=True, default=str)
    return hashlib.sha256((state + special).encode()).hexdigest()


def _encoded(source: Source, rows: Iterable[Row], tokenizer: Any, template: str, max_length: int) -> Iterator[Encoded]:
    """Encode rows of a source, with up to ROWS_PER_BATCH per call of the tokenizer."""
    controls = control_tokens(tokenizer)
    backend = controls.backend()

    def encode(batch: list[Rendered | str]) -> Iterator[Encoded]:
        usable = [row for row in batch if isinstance(row, Rendered)]
        texts = [row.text if row.controls is None else "" for row in usable]  # those with controls are encoded below
        special = bool(usable) and usable[0].add_special_tokens  # depends on the template, so is the same for all rows
        encodings = iter(backend.encode_batch(texts, add_special_tokens=special))
        for row in batch:
            if isinstance(row, str):
                yield Encoded([], [], truncated=False, unusable=row)
                continue
            encoding = next(encodings)
            if row.controls is not None:
                encoding = controls.encode(row)
            yield supervise_and_truncate(encoding, row, tokenizer.eos_token_id, max_length)

    batch: list[Rendered | str] = []
    characters = 0
    for row in rows:
        rendered = _render(source, row, template, tokenizer)
        batch.append(rendered)
        characters += len(rendered.text) if isinstance(rendered, Rendered) else 0
        if len(batch) == ROWS_PER_BATCH or characters >= MAX_CHARACTERS:
            yield from encode(batch)
            batch, characters = [], 0
    yield from encode(batch)


def _render(source: Source, row: Row, template: str, tokenizer: Any) -> Rendered | str:
    """Render a row as text; return the kind if it is unusable."""
    if row.unusable is not None:
        return row.unusable
    try:
        return render(row.example, template, tokenizer)
    except UnusableRow as error:
        return source.skipped(error, source.location(row.index))
    except UserError as error:
        raise error.at(f"row {row.index}") from None


def _record_batch(row_ids: pa.StringArray, rows: list[Encoded]) -> pa.RecordBatch:
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int32)
    response = _response_tokens(rows)
    columns = {
        "id": row_ids,
        "input_ids": [row.ids for row in rows],
        "supervised_spans": [list(chain.from_iterable(row.spans)) for row in rows],
        "prompt_tokens": lengths - response,
        "response_tokens": response,
        "truncated": [row.truncated for row in rows],
        "text_omitted": [row.text_omitted for row in rows],
        "unusable": [row.unusable for row in rows],
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _response_tokens(rows: list[Encoded]) -> np.ndarray:
    return np.array([sum(stop - start for start, stop in row.spans) for row in rows], dtype=np.int32)


def _views(batch: pa.RecordBatch) -> Batch:
    ids, spans = batch.column("input_ids"), batch.column("supervised_spans")
    return Batch(ids.values.to_numpy(), ids.offsets.to_numpy(), spans.values.to_numpy(), spans.offsets.to_numpy())
