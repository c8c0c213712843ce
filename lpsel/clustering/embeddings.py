"""Sentence embeddings of rows, computed once for every content and embedder.

U different contents, D dimensions
"""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from numpy.typing import NDArray

from lpsel.data.dataset import Source
from lpsel.errors import UserError, first_line
from lpsel.integrity import sha256_once
from lpsel.model.fingerprint import model_fingerprint
from lpsel.storage import digest, write_atomically

log = logging.getLogger(__name__)

FORMAT = 2  # of kept embeddings: raised when the same row and embedder would give another vector
MAX_TOKENS = 256  # of a row; what the paper's embedder reads
BATCH_ROWS = 64
PART_ROWS = 16_384  # sorted by length together, and kept together
NAME_DIGITS = 32  # of a SHA-256, in a kept file's name


def check_embedder(embedder: str) -> None:
    """See that there is such an embedder, without loading it.

    Raises:
        UserError: neither a folder that holds a model nor a model that the Hub gives.
    """
    _config_file(embedder)


def embed(source: Source, embedder: str, cache_dir: Path) -> NDArray[np.float32]:
    """Embeddings of all different contents of a source, in ascending order of their ids, float32 (U, D).

    Those that are not in the cache are computed and kept there. A kept file is named by its SHA-256; one that has
    changed is taken away, with a warning, and what was in it is computed again.

    Args:
        embedder: a sentence-transformers folder or Hub id; its own modules normalise or not. It reads 256 tokens.
        cache_dir: holds the embeddings under the hash of the embedder.

    Raises:
        UserError: the embedder cannot be loaded.
    """
    folder = cache_dir / "embeddings" / embedder_fingerprint(embedder, cache_dir)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    ids_U, place_N = source.contents
    first_U = np.unique(place_N, return_index=True)[1]
    with FileLock(folder / "lock"):
        _take_away_damaged(folder)
        known_U = pc.is_in(ids_U, value_set=_cached_ids(folder)).to_numpy(zero_copy_only=False)
        missing_N = np.zeros(len(place_N), np.bool_)
        missing_N[first_U[~known_U]] = True
        if missing_N.any():
            _embed_missing(source, missing_N, embedder, folder)
        return _cached(folder, ids_U)


def embedder_fingerprint(embedder: str, cache_dir: Path) -> str:
    """A SHA-256 of everything that embeddings depend on, the rows aside."""
    model = model_fingerprint(embedder, cache_dir=cache_dir)
    return digest({"format": FORMAT, "max_tokens": MAX_TOKENS, "model": model})


def _config_file(embedder: str) -> Path:
    """The embedder's config.json (a Hub model's lies in a folder with the commit's name)."""
    remedy = "Give cluster.embedder=FOLDER (a sentence-transformers model), or cluster=none."
    folder = Path(embedder).expanduser()
    if folder.is_dir():
        for name in ("config.json", "modules.json"):
            if (folder / name).is_file():
                return folder / name
        raise UserError(f"cluster.embedder={embedder}: has neither config.json nor modules.json. {remedy}")
    if folder.is_absolute() or embedder.startswith((".", "~")) or embedder.count("/") > 1:
        raise UserError(f"cluster.embedder={embedder}: no such folder. {remedy}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(embedder, "config.json"))
    except Exception as error:  # the Hub's client raises many kinds, of several libraries
        raise UserError(
            f"cluster.embedder={embedder}: no such folder, and the Hub says: {first_line(error)}. {remedy}"
        ) from error


def _embed_missing(source: Source, missing_N: NDArray[np.bool_], embedder: str, folder: Path) -> None:
    from lpsel.console import track

    model = _load(embedder)
    with track("Embedding", total=int(missing_N.sum()), unit="rows") as advance:
        for part in _parts(source, missing_N):
            part.sort(key=lambda row: (len(row[1]), row[0]), reverse=True)
            vectors = []
            for start in range(0, len(part), BATCH_ROWS):
                texts = [text for _, text in part[start : start + BATCH_ROWS]]
                batch = model.encode(texts, batch_size=BATCH_ROWS, convert_to_numpy=True, show_progress_bar=False)
                vectors.append(np.asarray(batch, np.float32))
                advance(len(texts), tokens=_tokens(model, texts))
            _write(folder, [id_ for id_, _ in part], np.concatenate(vectors))


def _tokens(model: Any, texts: list[str]) -> int:
    """Tokens fed, for the progress bar; 0 where the embedder is none that has a tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return 0
    return sum(map(len, tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"]))


def _load(embedder: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as verbosity

    verbosity.disable_progress_bar()
    folder = Path(embedder).expanduser()
    told = verbosity.get_verbosity()
    verbosity.set_verbosity_error()  # it would speak of the head of a language model, which is not needed
    try:
        model = SentenceTransformer(
            str(folder) if folder.is_dir() else embedder, model_kwargs={"use_safetensors": True}
        )
    except Exception as error:  # transformers, the Hub's client and safetensors each raise their own
        raise UserError(
            f"cluster.embedder={embedder}: cannot be loaded ({first_line(error)}). "
            "Give cluster.embedder=FOLDER (a sentence-transformers model), or cluster=none."
        ) from error
    finally:
        verbosity.set_verbosity(told)
    model.max_seq_length = min(model.max_seq_length or MAX_TOKENS, MAX_TOKENS)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None and getattr(tokenizer, "pad_token", "") is None:  # padding is masked, whatever it is
        tokenizer.pad_token = tokenizer.eos_token
    return model


def _parts(source: Source, missing_N: NDArray[np.bool_]) -> Iterator[list[tuple[str, str]]]:
    """Content id and text of the rows that are missing, in lists of at most PART_ROWS."""
    part = []
    for row, missing in zip(source, missing_N, strict=True):
        if missing:
            part.append((source.ids[row.index].as_py(), row.example.embedding_text()))
        if len(part) == PART_ROWS:
            yield part
            part = []
    if part:
        yield part


def _write(folder: Path, ids: list[str], vectors: NDArray[np.float32]) -> None:
    flat = pa.array(vectors.reshape(-1), pa.float32())
    columns = {"id": pa.array(ids), "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
    table = pa.table(columns)

    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    content = buffer.getvalue()
    name = hashlib.sha256(content).hexdigest()[:NAME_DIGITS]
    write_atomically(folder / f"{name}.arrow", lambda file: file.write(content))


def _parts_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.arrow"))


def _take_away_damaged(folder: Path) -> None:
    for file in _parts_in(folder):
        if sha256_once(file)[:NAME_DIGITS] != file.stem:
            log.warning("%s: has changed since it was written; its rows are embedded again", file)
            file.unlink()


def _read_parts(folder: Path) -> Iterator[pa.Table]:
    for file in _parts_in(folder):
        with pa.memory_map(str(file)) as mapped:
            yield pa.ipc.open_file(mapped).read_all()


def _cached_ids(folder: Path) -> pa.Array:
    ids = [chunk for part in _read_parts(folder) for chunk in part["id"].chunks]
    return pa.concat_arrays(ids).cast(pa.large_string()) if ids else pa.array([], pa.large_string())


def _cached(folder: Path, ids_U: pa.LargeStringArray) -> NDArray[np.float32]:
    vectors_UD = None
    for part in _read_parts(folder):
        place = pc.index_in(part["id"].cast(pa.large_string()), value_set=ids_U).combine_chunks()
        rows = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
        dimensions = part.schema.field("embedding").type.list_size
        if vectors_UD is None:
            vectors_UD = np.empty((len(ids_U), dimensions), np.float32)
        vectors = part["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dimensions)
        vectors_UD[place.drop_null().to_numpy()] = vectors[rows]
    assert vectors_UD is not None
    return vectors_UD
