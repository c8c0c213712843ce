"""RunConfig: the command and configuration that a run folder was created with, and its result if it is finished."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lpsel import __version__
from lpsel.errors import UserError, printable_line
from lpsel.integrity import Damaged, check_files
from lpsel.redact import SECRET_NAME, redacted, register_secret
from lpsel.storage import digest, finite, read_dict, sha256_of, write_json

log = logging.getLogger(__name__)

RUN_CONFIG = "run_config.json"
RESULT = "result.json"
PUBLISHED = "dataset"  # folder in a run folder that `lpsel publish` writes
SCORER, TARGET = "scorer", "target"  # names of an embedder: the scorer, or the model to train
FORMAT = 1  # of result.json; a file without a format has this one
# Keys that do not change results; of the trainer's keys, only the precision does.
NOT_IN_RESULTS = (
    "cache_dir", "tracker", "experiment", "prompts_dir", "train_tokens", "score_tokens", "activation_checkpointing",
    "checkpoint_steps", "compile", "dry_run", "gpu_memory_gib", "gpu_tflops", "key_env",
)  # fmt: skip
# Keys of a judge that may change between runs in a folder: they only affect how many verdicts it has.
NOT_IN_VERDICTS = re.compile(r"(^|\.)judge\.(attempts|concurrency|key_env|max_cost|max_retries|timeout)$")
NOT_PATHS = ("name", "_target_")  # keys whose value is never a path, even if a file has the same name
SECRET_HEADER = re.compile(f"auth|cookie|{SECRET_NAME.pattern}", re.IGNORECASE)
FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:([^,}]+)")
MAX_HASHED = 32 << 20  # bytes of an input that are hashed at every start, in about a tenth of a second
MAX_DIFFERENCES = 3  # differences listed in a message


@dataclass(frozen=True)
class RunConfig:
    """A command and all settings and inputs that its result depends on."""

    command: str  # train, select or evaluate
    config: dict[str, Any]  # resolved, without `NOT_IN_RESULTS` and the cache folder of a judge
    inputs: dict[str, str] = field(default_factory=dict)  # `_file_state` of the files and folders in the config

    @classmethod
    def of(cls, command: str, config: DictConfig) -> "RunConfig":
        check_headers(config)
        register_environment(config)
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        unused = {*NOT_IN_RESULTS, "trainer", *unused_keys(command, resolved)}
        settings = {name: value for name, value in resolved.items() if name not in unused}
        settings["precision"] = resolved["trainer"]["precision"]
        settings = _without_caches(settings)
        settings = redacted(json.loads(json.dumps(finite(settings))))  # as read from a file
        files: dict[str, dict[Path, None]] = {}  # paths of every value, without repetitions, in order
        for _, text, path in existing_paths(settings):
            files.setdefault(text, {})[path] = None
        return cls(command, settings, {text: _file_state(paths) for text, paths in files.items()})

    def digest(self) -> str:
        """Digest of the command, the configuration and the inputs, stored in result.json as `run`."""
        return digest([self.command, self.config, self.inputs])

    def save(self, run_dir: Path) -> None:
        write_json(run_dir / RUN_CONFIG, {"command": self.command, "config": self.config, "inputs": self.inputs})

    def discard(self, run_dir: Path) -> None:
        """Delete the run configuration of a failed run if there is nothing else to resume from."""
        others = (path for path in run_dir.iterdir() if path.name not in (RUN_CONFIG, ".hydra", ".lock"))
        if all(path.suffix == ".log" for path in others):
            (run_dir / RUN_CONFIG).unlink(missing_ok=True)

    def check(self, run_dir: Path) -> None:
        """Raise a UserError if the folder holds a run with a different configuration, finished or not."""
        saved = read_dict(run_dir / RUN_CONFIG)
        if not isinstance(saved.get("config"), dict):  # missing, or not written by lpsel
            return
        differences = _differences(
            {"command": saved.get("command"), **saved["config"]}, {"command": self.command, **self.config}
        )
        differing = [(key, old, new) for key, old, new in differences if not NOT_IN_VERDICTS.search(key)]
        if not differing:
            return
        state = "a" if (run_dir / RESULT).is_file() else "an unfinished"
        existing = ", ".join(f"{key}={old}" for key, old, _ in differing[:MAX_DIFFERENCES])
        requested = ", ".join(f"{key}={new}" for key, _, new in differing[:MAX_DIFFERENCES])
        if len(differing) > MAX_DIFFERENCES:
            requested += f" and {len(differing) - MAX_DIFFERENCES} more"
        problem = f"holds {state} run with {existing}; this one has {requested}"
        hint = "set another hydra.run.dir (in a sweep, hydra.sweep.dir), or delete the folder"
        raise UserError(run_dir, problem=problem, hint=hint)

    def finished(self, run_dir: Path) -> dict[str, Any] | None:
        """Result of the same run in this folder; None if it is not finished, or its files or inputs have changed.

        Also None for an evaluation with missing judgments, which are requested again.
        """
        saved, result = read_dict(run_dir / RUN_CONFIG), read_dict(run_dir / RESULT)
        if not result or (saved.get("command"), saved.get("config")) != (self.command, self.config):
            return None
        saved_inputs = saved.get("inputs")
        if saved_inputs != self.inputs:
            known = saved_inputs if isinstance(saved_inputs, dict) else {}
            changed = (name for name, state in self.inputs.items() if known.get(name) != state)
            log.warning("%s has changed since the last run; running again", next(changed, "An input"))
            return None
        outputs = [result.get("subset"), result.get("selection"), result.get("model")]
        adapter = result.get("adapter")
        if not result.get("model") and isinstance(adapter, dict):
            outputs.append(adapter.get("folder"))
        if result.get("format", FORMAT) != FORMAT or not all(Path(str(path)).exists() for path in outputs if path):
            return None
        if result.get("run") != self.digest():  # an earlier run, whose files may already be partly replaced
            return None
        if unanswered := result.get("unanswered"):
            log.info("Requesting %s missing judgments again", unanswered)
            return None
        try:
            check_files(run_dir, result.get("sha256") or {})
        except Damaged as damage:
            log.warning("%s Running again.", damage)
            return None
        return result


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Read result.json of a run folder, None if there is none; raises a UserError for a different format version."""
    result = read_dict(run_dir / RESULT)
    if (file_format := result.get("format", FORMAT)) != FORMAT:
        problem = f"has format {printable_line(ValueError(file_format))}, lpsel {__version__} reads format {FORMAT}"
        raise UserError(run_dir / RESULT, problem=problem, hint="use the version of lpsel that wrote it")
    return result or None


def unused_keys(command: str, config: Any) -> set[str]:
    """Keys that the selection ignores, such as the scorer if no scores are needed or the target computes them."""
    if command != "train":
        return set()
    rule = config["selection"]
    drops_by_loss = "drop" in (rule.get("known"), rule.get("rising"))  # by the recorded losses, with any rule
    needs_scores = rule.get("epochs") is not None or bool(rule.get("combine")) or drops_by_loss
    scores_with_scorer = needs_scores and rule.get("scored_by") != TARGET
    embeds_with_scorer = SCORER in (rule.get("embedder"), config["cluster"].get("embedder"))
    unused = set()
    if not scores_with_scorer and not embeds_with_scorer:
        unused.add("scorer")
    if rule.get("pct") is not None:
        unused.add("pct")
    return unused


def check_headers(config: DictConfig) -> None:
    """Raise a UserError for an API key in a configuration file, which would be written to the run folder."""
    for key, value in leaves(OmegaConf.to_container(config, resolve=False)):
        sent = key.startswith(("judge.request.extra_headers.", "judge.request.extra_query."))
        if sent and SECRET_HEADER.search(key) and "${" not in str(value):
            problem = "a key in a configuration file would be written to the run folder"
            raise UserError(key, problem=problem, hint="write ${oc.env:NAME}, and set the variable NAME")


def register_environment(config: DictConfig) -> None:
    """Treat environment variables whose values are in `judge.request` as secrets: custom headers can hold keys."""
    resolved = leaves(OmegaConf.to_container(config, resolve=True))
    request = " ".join(str(value) for key, value in resolved if key.startswith("judge.request."))
    # Check all keys, since a request may refer to a key that refers to a variable.
    for _, value in leaves(OmegaConf.to_container(config, resolve=False)):
        for name in FROM_ENVIRONMENT.findall(str(value)):
            secret = os.environ.get(name, "")
            if secret in request:
                register_secret(secret)


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values in a configuration; items of a list have the key of the list."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value, key)
    else:
        yield key, node


def _without_caches(node: Any) -> Any:
    """Remove all `cache_dir` keys from a configuration."""
    if isinstance(node, dict):
        return {name: _without_caches(value) for name, value in node.items() if name != "cache_dir"}
    return node


def existing_paths(config: dict[str, Any]) -> Iterator[tuple[str, str, Path]]:
    """Yield keys and values in a configuration that name existing files or folders, with the path of each.

    A glob, such as data/*.jsonl, names several.
    """
    for key, text in leaves(config):
        name = key.rpartition(".")[2]
        if name in NOT_PATHS or not isinstance(text, str) or not text:
            continue
        with suppress(OSError, ValueError, RuntimeError):  # not a valid file name, or an unknown user
            path = Path(text).expanduser()
            if os.path.lexists(path):
                yield key, text, path
            elif has_magic(text) and name == "path":
                yield from ((key, text, Path(match)) for match in sorted(glob(str(path), recursive=True)))


def _file_state(paths: Iterable[Path]) -> str:
    """Digest of the names and contents of files, and of all files in folders and their subfolders.

    If they are large or unreadable, of their names, sizes and times. In folders, logs, HTML pages and hidden files are
    ignored; in run folders, also the published dataset.
    """
    files = [(str(file.relative_to(path.parent)), file) for path in paths for file in sorted(_files(path), key=str)]
    stats = [(name, file.stat()) for name, file in files]
    if sum(stat.st_size for _, stat in stats) <= MAX_HASHED:
        with suppress(OSError):
            return digest([(name, sha256_of(file)) for name, file in files])
    return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def _files(path: Path) -> list[Path]:
    """The file, or the files in the folder and its subfolders."""
    if path.is_file():
        return [path]
    inside = list(path.glob("[!.]*"))  # none if the folder cannot be read
    ignored = PUBLISHED if any(entry.name == RESULT for entry in inside) else ""
    folders = [path, *(folder for folder in inside if folder.name != ignored and folder.is_dir())]
    files = (file for folder in folders for file in folder.glob("[!.]*") if file.suffix not in (".log", ".html"))
    return [file for file in files if file.is_file()]


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted keys in which two configurations differ, with the old and the new value as in YAML."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*new, *old]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, "null" if old is None else old, "null" if new is None else new
