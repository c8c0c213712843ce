"""What commands share that take paths and flags."""

import argparse
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from lpsel.errors import UserError
from lpsel.run_config import RESULT
from lpsel.storage import writable


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are the user's one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help.")


def run_folder(command: str, given: Path | None) -> Path:
    """The folder `--out` names, or one with the time in its name; a result.json of an earlier run in it is gone.

    Raises:
        UserError: it cannot be made.
    """
    folder = given or Path("runs") / command / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    folder = folder.expanduser().resolve()
    try:
        writable(folder)
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be written ({error.strerror}); give a folder you may write to."
        ) from error
    (folder / RESULT).unlink(missing_ok=True)
    return folder
