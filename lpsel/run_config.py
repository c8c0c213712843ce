"""What a run was asked for, kept in its folder, so that the folder is never given to another configuration."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lpsel import __version__
from lpsel.errors import UserError, printable_line
from lpsel.integrity import Damaged, check_files
from lpsel.storage import digest, finite, read_json, write_json

log = logging.getLogger(__name__)

ASKED = "asked.json"
RESULT = "result.json"
SCORER = "scorer"  # as the name of an embedder: the scorer itself
FORMAT = 1  # of result.json, which a file without a format has too
# Where and how a run is made, which changes no result; of the trainer only the precision does.
WHERE_AND_HOW = (
    "cache_dir", "tracker", "experiment", "prompts_dir", "train_tokens", "score_tokens", "activation_checkpointing",
    "checkpoint_steps", "compile", "dry_run", "gpu_memory_gib",
)  # fmt: skip
SHOWN = 3  # differences named in a message


@dataclass(frozen=True)
class Asked:
    """A command and what its result depends on.

    Attributes:
        config: the parts of its resolved configuration that matter.
        inputs: of every file and folder that these name, a digest of names, sizes and times.
    """

    command: str
    config: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, command: str, config: DictConfig) -> "Asked":
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        kept = {name: value for name, value in resolved.items() if name not in (*WHERE_AND_HOW, "trainer")}
        kept["precision"] = resolved["trainer"]["precision"]
        unused = unused_keys(command, resolved)
        # As it comes back from a file.
        kept = json.loads(json.dumps(finite({k: v for k, v in kept.items() if k not in unused})))
        return cls(command, kept, {text: state for text in _texts(kept) if (state := _state(text)) is not None})

    def keep(self, run_dir: Path) -> None:
        """Leave it in the run folder, once there is a run."""
        write_json(run_dir / ASKED, {"command": self.command, "config": self.config, "inputs": self.inputs})

    def forget(self, run_dir: Path) -> None:
        """Take that back where a run has failed and left nothing else to go on with."""
        others = (path for path in run_dir.iterdir() if path.name not in (ASKED, ".hydra", ".lock"))
        if all(path.suffix == ".log" for path in others):
            (run_dir / ASKED).unlink(missing_ok=True)

    def check(self, run_dir: Path) -> None:
        """Refuse a folder with a run of another configuration, be it done or cut off.

        Raises:
            UserError: names what differs.
        """
        there = _read(run_dir / ASKED)
        if there is None:
            return
        ours = {"command": self.command, **self.config}
        theirs = {"command": there["command"], **there["config"]}
        differing = list(_differences(theirs, ours))
        if differing:
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            has, asks = (", ".join(f"{key}={pair[i]}" for key, *pair in differing[:SHOWN]) for i in (0, 1))
            raise UserError(
                f"{run_dir}: holds {'a' if (run_dir / RESULT).is_file() else 'an unfinished'} run with {has}; this one "
                f"has {asks}{more}; give another hydra.run.dir (in a sweep hydra.sweep.dir), or delete the folder."
            )

    def finished(self, run_dir: Path) -> dict[str, Any] | None:
        """The result of the same in this folder; None without one, or where files that it used or made have changed."""
        there, result = _read(run_dir / ASKED), _read(run_dir / RESULT)
        if there is None or result is None or (there["command"], there["config"]) != (self.command, self.config):
            return None
        if changed := sorted({*self.inputs.items()} ^ {*there.get("inputs", {}).items()}):
            log.warning("%s: has changed since it was used; done again", changed[0][0])
            return None
        made = [result.get(name) for name in ("subset", "selection", "model")]
        if result.get("format", FORMAT) != FORMAT or not all(Path(path).exists() for path in made if path):
            return None
        try:
            check_files(run_dir, result.get("sha256") or {})
        except Damaged as damage:
            log.warning("%s Running it again.", damage)
            return None
        return result


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """What result.json in a run folder says; None where there is none, or no whole one.

    Raises:
        UserError: it is of another format.
        PermissionError: it may not be read.
    """
    try:
        result = read_json(run_dir / RESULT)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict):
        return None
    if (found := result.get("format", FORMAT)) != FORMAT:
        raise UserError(
            run_dir / RESULT,
            problem=f"has format {printable_line(ValueError(found))}, lpsel {__version__} reads format {FORMAT}",
            hint="use the lpsel that wrote it",
        )
    return result


def unused_keys(command: str, config: Any) -> set[str]:
    """Keys of a configuration that its selection does not look at: a rule without scores needs no scorer to train."""
    if command != "train":
        return set()
    rule = config["selection"]
    embeds = SCORER in (rule.get("embedder"), config["cluster"].get("embedder"))
    scorer = {"scorer"} if rule.get("epochs") is None and not embeds else set()
    return scorer | ({"pct"} if rule.get("pct") is not None else set())


def _texts(value: Any) -> Iterator[str]:
    """Every string in a configuration, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _state(text: str) -> str | None:
    """A digest of names, sizes and times of a file, or of the files in a folder and the folders in it; None of others.

    Logs and hidden files do not count.
    """
    path = Path(text).expanduser()
    try:
        if not text or not path.exists():
            return None
        found = [path] if path.is_file() else [*path.glob("[!.]*"), *path.glob("[!.]*/[!.]*")]
        files = [file for file in found if file.is_file() and file.suffix != ".log"]
        about = sorted((str(file.relative_to(path.parent)), file.stat()) for file in files)
    except (OSError, ValueError):  # not a name that a file could have
        return None
    return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in about])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _differences(theirs: Any, ours: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in dict.fromkeys([*ours, *theirs]):
            yield from _differences(theirs.get(name), ours.get(name), f"{key}.{name}" if key else name)
    elif theirs != ours:
        yield key, "null" if theirs is None else theirs, "null" if ours is None else ours
