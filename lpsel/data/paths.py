"""Resolve `dataset.path`: local files, folders, globs or a Hub id."""

import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from lpsel.data.formats import ENDINGS, reader_of
from lpsel.errors import UserError, first_line

NUMBER = r"(((?<!\d)|[-_. ])\d+([-_. ]of[-_. ]\d+)?(-[0-9a-f]{16})?)?"  # of a shard of a split
EXTENSION = r"\.[a-z]+(\.(xz|gz|zst))?"
METADATA = ("dataset_info.json", "dataset_infos.json", "state.json")  # of the Hub, LLaMA-Factory and save_to_disk
SPLITS = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev|eval)(?![a-z])")


def local_files(paths: str | Sequence[str], split: str) -> list[Path]:
    """Return the local files of a dataset; empty if the path is not local.

    Paths in a list keep their order; files of a folder or glob are sorted by name. If files in a folder are named after
    the split, only these are returned, see `_of_split`.

    Raises:
        UserError: a file does not exist, has an unknown format, or a folder only has files of other splits.
    """
    if isinstance(paths, str):
        return _files(paths, split)
    if not paths or not all(isinstance(path, str) for path in paths):
        hint = "set dataset.path=[a.jsonl,b.jsonl]"
        raise UserError("dataset.path", paths, "must be a path or a list of paths", hint)
    files = []
    for path in paths:
        files_of_path = _files(path, split)
        if not files_of_path:
            raise UserError("dataset.path", path, "no such file", "name local files, or a single Hub id")
        files += files_of_path
    return files


def absolute(path: str | list[str] | None) -> str | list[str] | None:
    """Make local paths absolute; a Hub id is returned unchanged."""
    if isinstance(path, list):
        return [str(absolute(item)) for item in path]
    return path if path is None or is_hub_id(path) else str(Path(path).expanduser().resolve())


def is_hub_id(path: object) -> bool:
    """Return whether a path names a dataset on the Hub rather than local files."""
    if not isinstance(path, str) or has_magic(path) or reader_of(path) is not None:
        return False
    local = Path(path).expanduser()
    return not (local.is_absolute() or local.exists())  # an absolute path stays local if its folder is deleted


def file_state(path: Path) -> tuple[int, ...] | None:
    """Return size, modification time and inode of a file, to detect changes; None if it does not exist."""
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def hub_commit(path: str, revision: str | None) -> str | None:
    """Return the current commit of a branch, a tag or the default revision; `revision` if the Hub does not reply."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(path, revision=revision, timeout=10).sha
    except Exception:  # loading the dataset will raise `hub_error`
        return revision


def hub_error(path: object, split: str, error: Exception) -> UserError:
    """Return the error for a dataset that cannot be loaded from the Hub."""
    problem = f"not a local file, and the Hub reports for split {split}: {first_line(error)}"
    hint = "set it to a local file or a Hub dataset that you can access, with HF_TOKEN for a gated one"
    return UserError("dataset.path", path, problem, hint)


def _files(text: str, split: str) -> list[Path]:
    if not text:
        raise UserError("dataset.path", text, "is empty", "set dataset.path=FILE_OR_HUB_ID")
    path = Path(text).expanduser()
    if path.is_file():
        if reader_of(text) is None:
            raise UserError("dataset.path", text, f"must end in {ENDINGS}", "rename or convert the file")
        return [path]
    if path.is_dir():
        names = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
        files = _readable(names)
        if not files:
            hint = f"name a file that ends in {ENDINGS}, or a glob such as '{text}/**/*.jsonl'"
            if any(entry.suffix == ".arrow" for entry in names):
                hint = "write it with Dataset.to_parquet instead of save_to_disk"
            raise UserError("dataset.path", text, "is a folder without data files", hint)
        return _of_split(files, split, text)
    if path.exists():
        hint = f"name a file that ends in {ENDINGS}"
        raise UserError("dataset.path", text, "is not a regular file", hint)
    if has_magic(text):
        files = _readable([Path(name) for name in sorted(glob(str(path), recursive=True))])
        if not files:
            raise UserError("dataset.path", text, f"matches no file that ends in {ENDINGS}", "check the pattern")
        return files
    if reader_of(text) is not None:
        raise UserError("dataset.path", text, "no such file", "check the name and the current folder")
    return []


def _of_split(files: list[Path], split: str, folder: str) -> list[Path]:
    """Return the files of a folder whose names end with the split and an optional number; all if no name has a split.

    For train, these are train.jsonl, my_train.jsonl, train_00.jsonl and train-00000-of-00001.parquet (also with a hash
    added by the Hub), but not train_sft.jsonl, which is a different split.
    """
    named_after_split = re.compile(rf"(.*[^a-z0-9])?{re.escape(split.lower())}{NUMBER}{EXTENSION}")
    matching = [file for file in files if named_after_split.fullmatch(file.name.lower())]
    if not matching and all(SPLITS.search(file.name.lower()) for file in files):
        names = ", ".join(file.name for file in files[:3])
        problem = f"{folder} has no file for this split, only {names}{', ...' if len(files) > 3 else ''}"
        hint = "set it to a split that files are named after, or list the files"
        raise UserError("dataset.split", split, problem, hint)
    return matching or files


def _readable(paths: Sequence[Path]) -> list[Path]:
    """Return the data files in a folder or of a glob, without files that describe a dataset."""
    files = (path for path in paths if path.is_file() and path.name not in METADATA)
    return [path for path in files if reader_of(path.name) is not None]
