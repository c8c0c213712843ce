"""Rows as token ids, made once and kept in a memory-mapped Arrow file.

The cache is keyed by everything the ids depend on: the rows, the tokenizer, the template and the length.
"""

# N rows, T tokens of a row (fed to the model, after truncation)
import hashlib
import json
import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lpsel.console import track
from lpsel.data.dataset import Row, Source
from lpsel.data.templates import Rendered, render, template_hash
from lpsel.errors import UserError
from lpsel.integrity import Damaged, seal, unseal
from lpsel.storage import write_atomically

log = logging.getLogger(__name__)

FORMAT = 2  # of the file: raised when the same key would give other tokens
ROWS_PER_BATCH = 1024  # of every record batch but the last, so that row i lies in batch i // ROWS_PER_BATCH
CHARACTERS_AT_ONCE = 1 << 20  # through the tokenizer, which needs some hundred bytes for each token
MANIFEST = "manifest.json"
DATA = "tokens.arrow"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised_spans", pa.list_(pa.int32())),  # first, end, first, end, ... positions in input_ids
        ("prompt_tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)


class Batch(NamedTuple):
    """The list columns of a record batch: views of the file, row j from offsets[j] to offsets[j + 1]."""

    ids: np.ndarray
    id_offsets: np.ndarray
    spans: np.ndarray
    span_offsets: np.ndarray


class Tokens:
    """The token ids of a data set, read-only, from a memory-mapped file; rows in the order of the source.

    Attributes:
        folder: where they are kept.
        reused: whether they were there already.
        prompt_tokens: tokens fed that are not supervised, int32 (N,).
        response_tokens: supervised tokens after truncation, int32 (N,).
        truncated: whether something was cut off, bool (N,).
        lengths: tokens fed, int32 (N,), the sum of the first two.
    """

    def __init__(self, folder: Path, reused: bool = True) -> None:
        self.folder = folder
        self.reused = reused
        self._file = pa.ipc.open_file(pa.memory_map(str(folder / DATA)))
        batches = [self._file.get_batch(place) for place in range(self._file.num_record_batches)]
        self._batches = [_views(batch) for batch in batches]
        self.prompt_tokens = _column(batches, "prompt_tokens", np.int32)
        self.response_tokens = _column(batches, "response_tokens", np.int32)
        self.truncated = _column(batches, "truncated", np.bool_)
        self.lengths = self.prompt_tokens + self.response_tokens

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def ids(self) -> pa.StringArray:
        """The content id of every row."""
        batches = (self._file.get_batch(place) for place in range(self._file.num_record_batches))
        return pa.concat_arrays([batch.column("id") for batch in batches])

    @property
    def n_truncated(self) -> int:
        """Rows of which something was cut off."""
        return int(self.truncated.sum())

    @property
    def n_unsupervised(self) -> int:
        """Rows without a supervised token: no answer, or one that was cut off whole."""
        return int((self.response_tokens == 0).sum())

    def input_ids(self, i: int) -> np.ndarray:
        """The tokens of row i, int32 (T,): a read-only view of the file."""
        place, row = divmod(i, ROWS_PER_BATCH)
        batch = self._batches[place]
        return batch.ids[batch.id_offsets[row] : batch.id_offsets[row + 1]]

    def batches(self) -> list[Batch]:
        """The list columns of all rows, in order, as views of the file: `ROWS_PER_BATCH` rows each but the last."""
        return self._batches

    def supervised(self, i: int) -> np.ndarray:
        """Which tokens of row i are labels, bool (T,): label t is what position t - 1 predicts, so never t = 0."""
        place, row = divmod(i, ROWS_PER_BATCH)
        batch = self._batches[place]
        mask_T = np.zeros(batch.id_offsets[row + 1] - batch.id_offsets[row], dtype=np.bool_)
        spans = batch.spans[batch.span_offsets[row] : batch.span_offsets[row + 1]]
        for first, end in spans.reshape(-1, 2):
            mask_T[first:end] = True
        return mask_T


def tokenize(source: Source, tokenizer: Any, template: str, max_length: int, cache_dir: Path) -> Tokens:
    """The tokens of every row of `source`, from the cache where they are there.

    Rows are cut to `max_length` tokens from the right, after the end of sequence was added, as the paper's released
    code does: a long row loses its end, or its whole answer.

    Args:
        source: the rows.
        tokenizer: a fast tokenizer of transformers with an end-of-sequence token.
        template: alpaca, chat or plain, see `lpsel.data.templates`.
        max_length: tokens.
        cache_dir: `tokens/<key>` is made in it. Processes that ask for the same tokens wait for the first. A file that
            is no longer what was written is made again, with a warning.

    Raises:
        UserError: the tokenizer is not a fast one or has no EOS, the template does not fit, the cache cannot be
            written, or what `Source` raises.
    """
    from filelock import FileLock

    key, folder = _place(source, tokenizer, template, max_length, cache_dir)
    if _damage(folder, key) is None:
        return Tokens(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            damage = _damage(folder, key)
            if damage is None:
                return Tokens(folder)
            if (folder / MANIFEST).exists():
                log.warning("%s Tokenizing again.", damage)
            _write(folder / DATA, source, _encoded(source, tokenizer, template, max_length))
            seal(folder / MANIFEST, [DATA], {**key, "rows": len(source)})
    except OSError as error:
        raise UserError(
            f"cache_dir={cache_dir}: cannot be written ({error.strerror or error}). Name another folder."
        ) from error
    return Tokens(folder, reused=False)


def find_tokens(source: Source, tokenizer: Any, template: str, max_length: int, cache_dir: Path) -> Tokens | None:
    """What `tokenize` would take from the cache, None where it would make them."""
    key, folder = _place(source, tokenizer, template, max_length, cache_dir)
    return Tokens(folder) if _damage(folder, key) is None else None


def count_tokens(rows: Sequence[Row], tokenizer: Any, template: str, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens fed and supervised tokens of some rows, int32 (N,) each, as `tokenize` would find; nothing is kept."""
    batches = list(_encoded(rows, tokenizer, template, max_length))
    prompt_N, response_N = (_column(batches, f"{part}_tokens", np.int32) for part in ("prompt", "response"))
    return prompt_N + response_N, response_N


def _place(
    source: Source, tokenizer: Any, template: str, max_length: int, cache_dir: Path
) -> tuple[dict[str, Any], Path]:
    """What the tokens depend on, and the folder they are kept in."""
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer of {name}: not a fast one, which lpsel needs. Convert it to a tokenizer.json.")
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer of {name}: no end-of-sequence token. Set eos_token in its tokenizer_config.json.")
    key = {
        "format": FORMAT,
        "data": source.fingerprint,
        "tokenizer": tokenizer_hash(tokenizer),
        "template": template_hash(template, tokenizer),
        "max_length": max_length,
    }
    folder = Path(cache_dir).expanduser() / "tokens" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return key, folder


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of all that a fast tokenizer's ids depend on: its backend and its special tokens."""
    state = tokenizer.backend_tokenizer.to_str()
    state = state[state.index('"added_tokens"') :]  # before it stand truncation and padding, which are set per call
    special = json.dumps([tokenizer.special_tokens_map, tokenizer.eos_token_id], sort_keys=True, default=str)
    return hashlib.sha256((state + special).encode()).hexdigest()


def _damage(folder: Path, key: dict[str, Any]) -> Damaged | None:
    """What is wrong, if the manifest, written last, is not there or not that of `key`, or the data not as it says."""
    try:
        manifest = unseal(folder / MANIFEST, FORMAT)
        if {name: manifest.get(name) for name in key} != key:
            raise Damaged(folder / MANIFEST, problem="is the manifest of other tokens")
    except Damaged as damage:
        return damage
    return None


def _write(path: Path, source: Source, batches: Iterator[pa.RecordBatch]) -> None:
    def write(file: Any) -> None:
        with (
            track("Tokenising", total=len(source), unit="rows") as advance,
            pa.ipc.new_file(file, SCHEMA) as written,
        ):
            for batch in batches:
                written.write_batch(batch)
                advance(batch.num_rows, tokens=len(batch.column("input_ids").values))

    write_atomically(path, write)


class _Encoded(NamedTuple):
    """A row cut to length: its ids, its supervised spans in tokens, and whether something was cut off."""

    ids: list[int]
    spans: list[tuple[int, int]]
    truncated: bool


def _encoded(source: Iterable[Row], tokenizer: Any, template: str, max_length: int) -> Iterator[pa.RecordBatch]:
    backend = _untrimmed(tokenizer)

    def encode(texts: list[Rendered]) -> list[_Encoded]:
        encodings = backend.encode_batch([t.text for t in texts], add_special_tokens=texts[0].add_special_tokens)
        return [
            _cut(encoding.ids, encoding.offsets, text, tokenizer.eos_token_id, max_length)
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    rows = ((row.example.content_id(), _render(row, template, tokenizer)) for row in source)
    ids: list[str] = []
    encoded: list[_Encoded] = []
    texts: list[Rendered] = []
    characters = 0
    for row_id, text in rows:
        ids.append(row_id)
        texts.append(text)
        characters += len(text.text)
        if len(ids) == ROWS_PER_BATCH or characters >= CHARACTERS_AT_ONCE:
            encoded += encode(texts)
            texts, characters = [], 0
        if len(ids) == ROWS_PER_BATCH:
            yield _record_batch(ids, encoded)
            ids, encoded = [], []
    if ids:
        yield _record_batch(ids, encoded + (encode(texts) if texts else []))


def _render(row: Row, template: str, tokenizer: Any) -> Rendered:
    try:
        return render(row.example, template, tokenizer)
    except UserError as error:
        raise UserError(f"row {row.index}: {error}") from None


def _untrimmed(tokenizer: Any) -> Any:
    """A copy of the tokenizer's backend that neither cuts nor pads, and counts a token's leading space as its own.

    Byte-level tokenizers such as GPT-2's leave the space of ` foo` out of its offsets (trim_offsets), and then a token
    that begins in the prompt would seem to begin in the answer, and a lone space to have no place at all.
    """
    from tokenizers import Tokenizer

    state = tokenizer.backend_tokenizer.to_str().replace('"trim_offsets":true', '"trim_offsets":false')
    backend = Tokenizer.from_str(state)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _cut(ids: list[int], offsets: list[tuple[int, int]], rendered: Rendered, eos: int, max_length: int) -> _Encoded:
    """Supervise the tokens that begin inside a supervised span, add EOS, then cut.

    A token that begins in the prompt and ends in the answer is not supervised: the paper masks the length of the
    prompt tokenised alone, which has that token too.
    """
    end_of_text = len(ids)
    while end_of_text and offsets[end_of_text - 1] == (0, 0):  # what the tokenizer itself added at the end
        end_of_text -= 1
    spans = []
    for start, end in rendered.supervised:
        first = bisect_left(offsets, (start,), 0, end_of_text)
        last = bisect_left(offsets, (end,), first, end_of_text)
        while first < last and offsets[first][0] == offsets[first][1]:
            first += 1
        spans.append((first, last))
    if rendered.append_eos:
        if ids[end_of_text:] != [eos]:
            ids = [*ids, eos]
        # The answer that ends the text runs on to its EOS.
        spans[-1] = (min(spans[-1][0], len(ids) - 1), len(ids))
    # Nothing predicts the first token, so it cannot be supervised.
    cut = [(max(first, 1), min(last, max_length)) for first, last in spans]
    return _Encoded(ids[:max_length], [span for span in cut if span[0] < span[1]], len(ids) > max_length)


def _record_batch(row_ids: list[str], rows: list[_Encoded]) -> pa.RecordBatch:
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int32)
    spans = [list(chain.from_iterable(row.spans)) for row in rows]
    response = np.array([sum(last - first for first, last in row.spans) for row in rows], dtype=np.int32)
    columns = [
        pa.array(row_ids, pa.string()),
        _lists([row.ids for row in rows]),
        _lists(spans),
        pa.array(lengths - response),
        pa.array(response),
        pa.array([row.truncated for row in rows], pa.bool_()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def _lists(rows: list[list[int]]) -> pa.ListArray:
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _views(batch: pa.RecordBatch) -> Batch:
    ids, spans = batch.column("input_ids"), batch.column("supervised_spans")
    return Batch(*(part.to_numpy() for lists in (ids, spans) for part in (lists.values, lists.offsets)))


def _column(batches: list[pa.RecordBatch], name: str, dtype: Any) -> np.ndarray:
    return np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in batches]).astype(dtype)
