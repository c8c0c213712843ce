"""`lpsel cache`: list cache entries with their size, age and the runs that used them, and delete unused ones."""

import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from lpsel import console
from lpsel.cache import FORMATS, USERS, exclusive
from lpsel.commands.arguments import OneLineParser
from lpsel.config import default_cache
from lpsel.errors import UserError, check_number
from lpsel.storage import read_dict

DIGEST = re.compile("[0-9a-f]{32}")
FOLDER = re.compile(rf"(?:.*-)?({DIGEST.pattern})(?:-e\d.*)?")  # [LABEL-]DIGEST and, for scores, what was recorded
FILE = re.compile(rf"({DIGEST.pattern}|[0-9a-f]{{16}}(?=-.)).*")  # a downloaded file has its name after the digest
# Kinds that are expensive to recreate: their entries are not deleted while a run that used them exists.
EXPENSIVE = ("scores", "answers", "verdicts", "trained")
FILES = ("prompts", "hashes")  # kinds whose entries are files
DAY = 24 * 60 * 60  # seconds
LISTED = 2  # runs listed per entry
LARGEST = 15  # entries that fit on a screen


@dataclass(frozen=True)
class Cached:
    """One cache entry; scores and the records that they were computed from count as one."""

    kind: str
    name: str
    paths: tuple[Path, ...]  # its folders or its file
    size: int  # in bytes
    days: float  # since its last use
    runs: tuple[Path, ...]  # existing folders of finished runs that used it


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(
        prog="lpsel cache", description="List what is cached, with its size, its age and the runs that used it."
    )
    parser.add_argument("--all", action="store_true", help=f"list all entries, not the {LARGEST} largest")
    parser.add_argument(
        "--prune",
        type=float,
        metavar="DAYS",
        help="delete what was last used more than DAYS days ago; scores, answers, verdicts and checkpoints only if no "
        "finished run used them",
    )
    parser.add_argument("--dir", type=Path, default=Path(default_cache()), help="the cache (LPSEL_CACHE)")
    options = parser.parse_args(arguments)
    cache_dir = options.dir.expanduser().resolve()
    if not cache_dir.is_dir():
        raise UserError("--dir", cache_dir, "no such folder", "name the cache_dir of your commands")
    if options.prune is None:
        entries, where = contents(cache_dir), "in"
    else:
        check_number("--prune", options.prune, minimum=0)
        entries, where = prune(cache_dir, options.prune), "deleted from"
    console.show(table(entries, f"{where} {cache_dir}", len(entries) if options.all else LARGEST))


def contents(cache_dir: Path) -> list[Cached]:
    """List all entries of a cache, largest first."""
    runs_by_entry = defaultdict(list)  # keys here and below are digests
    for file in _user_files(cache_dir):
        used = read_dict(file)
        run = Path(str(used.get("run")))
        if run.is_dir():
            for digest in used.get("entries") or ():
                runs_by_entry[digest].append(run)
    entries = []
    for kind, name in {**dict.fromkeys(FORMATS, FOLDER), **dict.fromkeys(FILES, FILE)}.items():
        paths_by_entry: dict[str, list[Path]] = defaultdict(list)
        for path in sorted((cache_dir / kind).glob("[!.]*")):
            if match := name.fullmatch(path.name):  # the folder may contain files of the user
                paths_by_entry[match[1]].append(path)
        entries += [_describe(kind, paths, runs_by_entry[digest]) for digest, paths in paths_by_entry.items()]
    return sorted(entries, key=lambda entry: entry.size, reverse=True)


def _user_files(cache_dir: Path) -> list[Path]:
    return [file for file in (cache_dir / USERS).glob("*.json") if DIGEST.fullmatch(file.stem)]


def _describe(kind: str, paths: Sequence[Path], runs: Sequence[Path]) -> Cached:
    stats = []
    for path in paths:
        for file in (path, *path.rglob("*")):
            with suppress(FileNotFoundError):  # a running command has deleted it
                stats.append(file.stat())
    now = time.time()
    days = (now - max((stat.st_mtime for stat in stats), default=now)) / DAY
    size = sum(stat.st_size for stat in stats if S_ISREG(stat.st_mode))
    return Cached(kind, paths[0].name, tuple(paths), size, days, tuple(sorted(runs)))


def prune(cache_dir: Path, days: float) -> list[Cached]:
    """Delete and return entries that were last used more than `days` days ago, except expensive ones of a run."""
    with exclusive(cache_dir):
        entries = [entry for entry in contents(cache_dir) if entry.kind not in EXPENSIVE or not entry.runs]
        old = [entry for entry in entries if entry.days > days]
        for entry in old:
            for path in entry.paths:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for file in _user_files(cache_dir):
            if not Path(str(read_dict(file).get("run"))).is_dir():
                file.unlink()
    return old


def table(entries: Sequence[Cached], where: str, most: int) -> Table:
    """Table with a row for each of the first `most` entries, and the total size of each kind."""
    sizes = Counter[str]()
    for entry in entries:
        sizes[entry.kind] += entry.size
    notes = [f"{len(entries):,} entries, {decimal(sizes.total())}, {where}"]
    if len(sizes) > 1:
        notes.insert(0, ", ".join(f"{kind} {decimal(size)}" for kind, size in sizes.most_common()))
    if len(entries) > most:
        notes.insert(0, f"... and {len(entries) - most:,} smaller entries: add --all to list them")
    listing = console.table(("kind", "entry", "size", "last used", "used by"), ("size", "last used"), notes=notes)
    for entry in entries[:most]:
        age = f"{entry.days:.0f} days ago" if entry.days >= 1 else "today"
        listing.add_row(entry.kind, _one_line(entry.name), decimal(entry.size), age, _one_line(_names(entry.runs)))
    return listing


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _names(runs: Sequence[Path]) -> str:
    """Names of the first runs, relative to the current folder, and the number of the others."""
    more = [f"{len(runs) - LISTED} more"] if len(runs) > LISTED else []
    return ", ".join([*(str(console.relative(run)) for run in runs[:LISTED]), *more])
