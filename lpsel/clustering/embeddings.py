"""Sentence embeddings of rows, computed and cached once per content and embedder.

U different contents, D dimensions
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpsel.cache import MANIFEST, Entry
from lpsel.console import track
from lpsel.data.dataset import Source
from lpsel.errors import UserError, first_line
from lpsel.integrity import sha256_once
from lpsel.model.fingerprint import hub_config, model_fingerprint
from lpsel.model.threads import choose_threads
from lpsel.storage import read_dict, write_file

log = logging.getLogger(__name__)

MAX_TOKENS = 256  # tokens read from a row, as by the paper's embedder
WEIGHTED_TOKENS = 2048  # tokens read from a row, as by RDS+
BATCH_ROWS = 64  # rows of MAX_TOKENS tokens in a batch; fewer if rows are longer
PART_ROWS = 16_384  # rows that are sorted by length and stored together
BATCHES_PER_GPU = 8  # between two updates of the progress bar
NAME_DIGITS = 32  # hexadecimal digits of the SHA-256 in the name of a part
OPTION = "cluster.embedder"
HINTS = {
    OPTION: "set cluster.embedder=FOLDER (a sentence-transformers model), or cluster=none",
    "selection.embedder": "set selection.embedder=FOLDER (a sentence-transformers or language model)",
}


def check_embedder(embedder: str, option: str = OPTION) -> None:
    """Check that an embedder exists, without loading it.

    Args:
        option: a key of HINTS, the option that sets the embedder.

    Raises:
        UserError: it is neither a model folder nor a model on the Hub.
    """
    folder = Path(embedder).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
            raise UserError(option, embedder, "has neither config.json nor modules.json", HINTS[option])
    elif folder.is_absolute() or embedder.startswith((".", "~")) or embedder.count("/") > 1:
        raise UserError(option, embedder, "no such folder", HINTS[option])
    else:
        try:
            hub_config(embedder)
        except UserError as error:
            raise UserError(option, embedder, error.problem, HINTS[option]) from error


def embed(
    source: Source, embedder: str, cache_dir: Path, weighted: bool = False, option: str = OPTION
) -> NDArray[np.float32]:
    """Embed all different contents of the usable rows, in ascending order of their ids, float32 (U, D).

    Embeddings are cached in parts, each named by its SHA-256. A damaged part is deleted with a warning, and its rows
    are embedded again.

    Args:
        embedder: a sentence-transformers folder or Hub id, with or without normalization. Reads 256 tokens of a row.
        weighted: instead of the embedder's own pooling and chat template, average the last hidden states of up to
            2,048 tokens, weighted by position (Ivison et al. 2025, RDS+, arXiv 2503.01807).
        option: a key of HINTS, the option that sets the embedder.

    Raises:
        UserError: the embedder cannot be loaded, or the cache cannot be written.
    """
    entry = embeddings_entry(embedder, cache_dir, weighted)
    ids_U, index_N = source.contents
    usable = np.flatnonzero(index_N >= 0)
    _, first = np.unique(index_N[usable], return_index=True)
    first_U = usable[first]  # the first row with each content
    with entry.locked():
        _delete_damaged(entry.folder)
        cached_U = pc.is_in(ids_U, value_set=_cached_ids(entry.folder)).to_numpy(zero_copy_only=False)
        missing_N = np.zeros(len(index_N), np.bool_)
        missing_N[first_U[~cached_U]] = True
        if missing_N.any():
            _embed_missing(source, missing_N, _load(embedder, weighted, option), entry.folder)
        vectors_UD = _cached_vectors(entry.folder, ids_U)
    assert vectors_UD is not None
    return vectors_UD


def embeddings_entry(embedder: str, cache_dir: Path, weighted: bool = False) -> Entry:
    """Cache entry of an embedder's vectors. Its key holds everything that they depend on except the rows."""
    key: dict[str, Any] = {"embedder": model_fingerprint(embedder, cache_dir=cache_dir), "max_tokens": MAX_TOKENS}
    if weighted:
        key |= {"max_tokens": WEIGHTED_TOKENS, "pooling": "weightedmean", "chat_template": False}
    return Entry.of(cache_dir, "embeddings", key, label=Path(embedder).name)


def _embed_missing(source: Source, missing_N: NDArray[np.bool_], model: Any, folder: Path) -> None:
    """Embed the missing rows and write them to the cache in parts."""
    rows = int(missing_N.sum())
    with track("Embedding", total=rows, unit="rows") as advance, _encoder(model, rows) as (encode, rows_per_call):
        for part in _parts(source, missing_N):
            part.sort(key=lambda row: (len(row.text), row.id), reverse=True)
            vectors = []
            for start in range(0, len(part), rows_per_call):
                texts = [row.text for row in part[start : start + rows_per_call]]
                vectors.append(np.asarray(encode(texts), np.float32))
                advance(len(texts))
            _write(folder, [row.id for row in part], np.concatenate(vectors))


@contextmanager
def _encoder(model: Any, rows: int) -> Iterator[tuple[Callable[[list[str]], Any], int]]:
    """Yield a function that embeds texts, on every visible GPU if there are many rows, and how many to pass at once."""
    size = min(BATCH_ROWS, max(BATCH_ROWS * MAX_TOKENS // model.max_seq_length, 1))
    options = {"batch_size": size, "convert_to_numpy": True, "show_progress_bar": False}
    gpus = _visible_gpus() if rows > PART_ROWS else []
    if len(gpus) < 2:
        yield partial(model.encode, **options), size
        return
    pool = model.start_multi_process_pool(gpus)
    try:
        yield partial(model.encode, pool=pool, chunk_size=size, **options), BATCHES_PER_GPU * size * len(gpus)
    finally:
        model.stop_multi_process_pool(pool)


def _visible_gpus() -> list[str]:
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def _load(embedder: str, weighted: bool, option: str) -> Any:
    """Load an embedder and set its maximum length and, if `weighted`, its pooling."""
    model = _load_sentence_transformer(embedder, option)
    called = next(model.children(), model)  # `encode` calls the modules, not the model
    choose_threads(sum(weight.numel() for weight in model.parameters()), called)
    max_tokens = WEIGHTED_TOKENS if weighted else MAX_TOKENS
    model.max_seq_length = min(model.max_seq_length or max_tokens, max_tokens)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None and getattr(tokenizer, "pad_token", "") is None:  # any token works: padding is masked
        tokenizer.pad_token = tokenizer.eos_token
    if weighted:
        from sentence_transformers.sentence_transformer.modules import Pooling

        reader: Any = model[0]
        reader.modality_config.pop("message", None)  # otherwise, the chat template is applied to each text
        model[1] = Pooling(model.get_embedding_dimension(), "weightedmean")
    return model


def _load_sentence_transformer(embedder: str, option: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as verbosity

    verbosity.disable_progress_bar()
    folder = Path(embedder).expanduser()
    level = verbosity.get_verbosity()
    verbosity.set_verbosity_error()  # no warning about the unused head of a language model
    try:
        path = str(folder) if folder.is_dir() else embedder
        return SentenceTransformer(path, model_kwargs={"use_safetensors": True})
    except Exception as error:  # transformers, the Hub client and safetensors raise different types
        raise UserError(option, embedder, f"cannot be loaded ({first_line(error)})", HINTS[option]) from error
    finally:
        verbosity.set_verbosity(level)


class _Text(NamedTuple):
    id: str
    text: str


def _parts(source: Source, missing_N: NDArray[np.bool_]) -> Iterator[list[_Text]]:
    """Yield the texts of the missing rows, in lists of at most PART_ROWS."""
    part = []
    for row, missing in zip(source, missing_N, strict=True):
        if missing:
            part.append(_Text(row.example.content_id(), row.example.embedding_text()))
        if len(part) == PART_ROWS:
            yield part
            part = []
    if part:
        yield part


def _write(folder: Path, ids: list[str], vectors: NDArray[np.float32]) -> None:
    flat = pa.array(vectors.reshape(-1), pa.float32())
    table = pa.table({"id": ids, "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    content = buffer.getvalue().to_pybytes()
    write_file(folder / f"{hashlib.sha256(content).hexdigest()[:NAME_DIGITS]}.arrow", content)


def _part_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.arrow"))


def _delete_damaged(folder: Path) -> None:
    for file in _part_files(folder):
        if sha256_once(file)[:NAME_DIGITS] != file.stem:
            log.warning("%s: has changed since it was written. Embedding its rows again.", file)
            file.unlink()


def _read_parts(folder: Path) -> Iterator[pa.Table]:
    for file in _part_files(folder):
        with pa.memory_map(str(file)) as mapped:
            yield pa.ipc.open_file(mapped).read_all()


def _cached_ids(folder: Path) -> pa.Array:
    ids = [chunk for part in _read_parts(folder) for chunk in part["id"].chunks]
    return pa.concat_arrays(ids).cast(pa.large_string()) if ids else pa.array([], pa.large_string())


def cached_embeddings(folders: Sequence[Path], cache_dir: Path, ids: pa.Array) -> NDArray[np.float32] | None:
    """Load cached embeddings of rows with these content ids, float32 (N, D); computes nothing.

    They come from an embeddings entry in `folders`, or from the one that a clusters entry in `folders` was computed
    from. Rows without an embedding are NaN; None if no row has one.
    """
    ids_U = pc.unique(ids)
    for folder in folders:
        folder = _embeddings_of_clusters(folder, cache_dir) or folder
        if folder.parent.name == "embeddings":
            _delete_damaged(folder)
            vectors_UD = _cached_vectors(folder, ids_U)
            if vectors_UD is not None and np.isfinite(vectors_UD).any():
                return vectors_UD[pc.index_in(ids, value_set=ids_U).to_numpy(zero_copy_only=False)]
    return None


def _embeddings_of_clusters(folder: Path, cache_dir: Path) -> Path | None:
    """Return the folder of the embeddings that a clusters entry was computed from; None for other folders."""
    key = read_dict(folder / MANIFEST).get("key", {}).get("embeddings")
    if key is None:
        return None
    name = Entry.of(cache_dir, "embeddings", key).digest
    return next(iter(cache_dir.glob(f"embeddings/*{name}")), None)


def _cached_vectors(folder: Path, ids_U: pa.LargeStringArray) -> NDArray[np.float32] | None:
    """Load the vectors of these ids, NaN where missing; None if the folder has none of them."""
    vectors_UD = None
    for part in _read_parts(folder):
        position = pc.index_in(part["id"].cast(pa.large_string()), value_set=ids_U).combine_chunks()
        rows = np.flatnonzero(position.is_valid().to_numpy(zero_copy_only=False))
        dimensions = part.schema.field("embedding").type.list_size
        if vectors_UD is None:
            vectors_UD = np.full((len(ids_U), dimensions), np.nan, np.float32)
        vectors = part["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dimensions)
        vectors_UD[position.drop_null().to_numpy()] = vectors[rows]
    return vectors_UD
