"""Fingerprint a model by the contents of its files, not their location. All caches that depend on a model use it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from lpsel.errors import UserError, first_line
from lpsel.integrity import sha256_once
from lpsel.storage import digest, read_dict, write_atomically

SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py")
LARGE = 1 << 20  # bytes; hashes of files of at least this size are cached


def model_fingerprint(path: str, revision: str | None = None, cache_dir: Path | None = None) -> str:
    """Return the SHA-256 of a local folder's model and tokenizer files, or the id and commit of a Hub model.

    It includes the module folders of a sentence-transformers model, and weights in subfolders if an index lists them.
    With `cache_dir`, processes share the hashes of large files.

    Raises:
        NotOnHub: `path` is neither a folder nor an available Hub model.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return f"{path}@{hub_config(path, revision).parent.name}"  # the snapshot folder is named after the commit
    fingerprint = hashlib.sha256()
    for name in _files(folder):
        fingerprint.update(f"{name}:{_sha256(folder / name, cache_dir)}\n".encode())
    return fingerprint.hexdigest()


class NotOnHub(UserError):
    """The model is neither in the local Hub cache nor available from the Hub."""


def hub_config(path: str, revision: str | None = None) -> Path:
    """Return the path of a Hub model's config.json, downloading it if it is not cached; raises NotOnHub."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, "config.json", revision=revision))
    except Exception as error:  # of many types, from several libraries
        raise NotOnHub(
            path,
            problem=f"no such folder, and not available from the Hub ({first_line(error)})",
            hint="set a model folder or a Hugging Face id, and set HF_TOKEN in the environment for a gated model",
        ) from error


def _files(folder: Path) -> Iterator[str]:
    """Yield the names of the files that determine a model, relative to its folder, in order."""
    is_sentence_transformer = (folder / "modules.json").is_file()
    files = set(folder.rglob("*") if is_sentence_transformer else folder.iterdir())
    for index in folder.glob("*.index.json"):
        weight_map = read_dict(index).get("weight_map")
        if isinstance(weight_map, dict):
            files.update(folder / str(name) for name in weight_map.values())
    for file in sorted(files):
        name = file.relative_to(folder)
        in_hidden_folder = any(part.startswith(".") for part in name.parts[:-1])
        if file.suffix in SUFFIXES and file.is_file() and not in_hidden_folder:
            yield name.as_posix()


def _sha256(file: Path, cache_dir: Path | None) -> str:
    stat = file.stat()
    if cache_dir is None or stat.st_size < LARGE:
        return sha256_once(file)
    state = [str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    cached = cache_dir / "hashes" / digest(state)[:32]
    if not cached.is_file():
        sha256 = sha256_once(file).encode()
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, lambda opened: opened.write(sha256))
    return cached.read_text()
