"""Arguments of the commands that take paths and flags."""

import argparse
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from lpsel.errors import UserError
from lpsel.integrity import Damaged, check_files
from lpsel.output_folder import check_output_folder, mark_output_folder
from lpsel.run_config import read_result
from lpsel.storage import check_writable

SELECTION = "selection.parquet"


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports errors as one-line user errors."""

    def error(self, message: str) -> NoReturn:
        name, _, problem = message.partition(": ")  # argparse: "unrecognized arguments: --wrong"
        raise UserError(name.removeprefix("argument "), problem=problem or "invalid", hint=f"see {self.prog} --help")


def run_folder(command: str, given: Path | None, inputs: Iterable[str | Path]) -> Path:
    """Create the folder that `--out` names, or one with the time in its name.

    Raises:
        UserError: it cannot be created, contains one of the files in `inputs`, or is not from the same command.
    """
    folder = given or Path("runs") / command / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    folder = folder.expanduser().resolve()
    check_output_folder(folder, command, inputs, replaced=False)
    check_writable("--out", folder)
    mark_output_folder(folder, command)
    return folder


def scores_of_run(folder: Path) -> dict[str, Any]:
    """The result of a run of select or train, whose `scores` is the path of the scores it used.

    Raises:
        UserError: not a finished run, or one whose scores do not exist.
    """
    result = read_result(folder) or {}
    if "scores" not in result:
        hint = "give a folder or file of scores, or the folder of a finished run"
        raise UserError(folder, None, "neither a scores folder nor a finished run of select or train", hint)
    if not isinstance(result["scores"], str):
        raise UserError(folder, None, f"this run used no scores (selection={result.get('rule')})", "give another run")
    if not Path(result["scores"]).exists():
        raise UserError(folder, None, f"its scores {result['scores']} no longer exist", "give another run")
    return result


def selection_of_run(folder: Path) -> Path:
    """The selection.parquet of a run folder, unchanged since it was written."""
    hashes = (read_result(folder) or {}).get("sha256") or {}
    try:
        check_files(folder, {name: hashes[name] for name in [SELECTION] if name in hashes})
    except Damaged as damage:
        raise damage.with_hint("select again") from None
    return folder / SELECTION
