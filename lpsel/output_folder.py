"""Output folders: no command deletes or overwrites a file that it did not write."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lpsel.errors import UserError
from lpsel.run_config import RESULT, RUN_CONFIG
from lpsel.storage import folder_atomically, read_json, write_json

MARKER = ".lpsel.json"  # in an output folder: the command that wrote it and, where it is replaced as a whole, its files
ANOTHER = "name another folder"
DESKTOP_FILES = (".DS_Store", "Thumbs.db")

SUBSET_FILES = ("subset.jsonl", "subset.parquet", "selection.parquet")
RUN_OUTPUTS = {
    "select": SUBSET_FILES,
    "train": ("model", "adapter", *SUBSET_FILES),
    "evaluate": ("generations", "judgements.parquet", "annotate.html", "key.json", "votes"),
}
RUN_FOLDERS = ("model", "adapter", "generations")
RUN_RECORDS = (RESULT, "metrics.csv", "hparams.yaml")
NOT_PATHS = ("name", "_target_")  # keys whose value is never a path, even where a file has the same name


@contextmanager
def output_folder(
    folder: Path, command: str, inputs: Iterable[str | Path] = (), written_later: Iterable[str] = ()
) -> Iterator[Path]:
    """An empty folder to write in, which replaces `folder` at the end and is marked as output of `command`.

    Args:
        inputs: files and folders that the command reads.
        written_later: names of files that the command adds to the finished folder.

    Raises:
        UserError: as `check_output_folder`.
    """
    check_output_folder(folder, command, inputs)
    with folder_atomically(folder) as temporary:
        yield temporary
        write_json(temporary / MARKER, {"command": command, "files": [*_files(temporary), *written_later]})


def check_output_folder(
    folder: Path, command: str, inputs: Iterable[str | Path] = (), *, replaced: bool = True
) -> None:
    """Reject a folder given with --out, unless it is empty, does not exist, or is earlier output of the same command.

    Args:
        folder: resolved.
        inputs: files and folders that the command reads; the folder must not contain any of them.
        replaced: everything in the folder is deleted: it must not be the working directory, and must not have files
            that were added to the output.

    Raises:
        UserError: names the folder and what is in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}", None, "is not a folder", ANOTHER)
    for path in inputs:
        if inside := next((p for p in _spellings(path) if p.is_relative_to(folder)), None):
            raise UserError(f"--out {folder}", None, f"contains {inside}, which this command reads", ANOTHER)
    if replaced and Path.cwd().is_relative_to(folder):
        raise UserError(f"--out {folder}", None, "contains the working directory", ANOTHER)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    marker = _read_dict(folder / MARKER)
    if marker.get("command") != command:
        raise UserError(f"--out {folder}", None, f"is not empty and was not written by lpsel {command}", ANOTHER)
    files = marker.get("files")
    known = set(files) if isinstance(files, list) else set()
    if replaced and (added := sorted(set(_files(folder)) - known)):
        raise UserError(
            f"--out {folder}", None, f"{added[0]} in it was not written by lpsel {command}", f"move it, or {ANOTHER}"
        )


def mark_output_folder(folder: Path, command: str) -> None:
    """Mark a folder in which `command` overwrites its own files one by one."""
    write_json(folder / MARKER, {"command": command})


def check_run_folder(command: str, config: DictConfig, run_dir: Path) -> None:
    """Reject a run folder in which this run would overwrite an input or anything that an earlier run did not write.

    Raises:
        UserError: names the input or the file.
    """
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    outputs = [run_dir / name for name in (*RUN_OUTPUTS[command], *RUN_RECORDS, RUN_CONFIG)]
    for key, text in _texts(resolved):
        for path in _spellings(text):
            if output := next((o for o in outputs if path.is_relative_to(o) and os.path.lexists(o)), None):
                raise UserError(
                    key, text, f"the output of this run would replace it ({output})", "name another hydra.run.dir"
                )
    if any(_read_dict(run_dir / record).get("command") == command for record in (RUN_CONFIG, RESULT)):
        return
    for name in dict.fromkeys((*RUN_FOLDERS, *RUN_OUTPUTS[command], *RUN_RECORDS)):
        if os.path.lexists(run_dir / name):
            problem = f"{name} in it is not from an earlier lpsel {command}"
            raise UserError("hydra.run.dir", run_dir, problem, "move it, or name another hydra.run.dir")


def _files(folder: Path) -> list[str]:
    """Relative paths of the files and links in a folder, sorted."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.name not in (*DESKTOP_FILES, MARKER))


def _spellings(text: str | Path) -> list[Path]:
    """The absolute path of an existing file or folder, as given and with links resolved; none where nothing exists."""
    try:
        path = Path(text).expanduser()
        if not str(text) or not os.path.lexists(path):
            return []
        return [Path(os.path.abspath(path)), path.resolve()]
    except (OSError, ValueError, RuntimeError):  # not a name that a file could have, a loop of links, no such user
        return []


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys and values of the strings in a configuration that may be paths."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, key)
    elif isinstance(value, dict):
        for name, part in value.items():
            if name not in NOT_PATHS:
                yield from _texts(part, f"{key}.{name}" if key else str(name))


def _read_dict(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
