"""What a run folder is for: the command and configuration it was created with, and the result if it is finished."""

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lpsel import __version__
from lpsel.errors import UserError, printable_line
from lpsel.integrity import Damaged, check_files
from lpsel.redact import SECRET_NAME, redacted, register_secret
from lpsel.storage import digest, finite, read_dict, write_json

log = logging.getLogger(__name__)

RUN_CONFIG = "run_config.json"
RESULT = "result.json"
SCORER, TARGET = "scorer", "target"  # as the name of an embedder: the scorer itself, the model to train
FORMAT = 1  # of result.json; a file without a format has this one
# Keys that change where and how a run is made, and no result; of the trainer, only the precision changes results.
NOT_IN_RESULTS = (
    "cache_dir", "tracker", "experiment", "prompts_dir", "train_tokens", "score_tokens", "activation_checkpointing",
    "checkpoint_steps", "compile", "dry_run", "gpu_memory_gib", "gpu_tflops", "key_env",
)  # fmt: skip
# Keys of a judge that may change in a folder: they change how many of its verdicts there are.
NOT_IN_VERDICTS = re.compile(r"(^|\.)judge\.(attempts|concurrency|key_env|max_cost|max_retries|timeout)$")
NOT_PATHS = ("name", "_target_")  # keys whose value is never a path, even where a file has the same name
SECRET_HEADER = re.compile(f"auth|cookie|{SECRET_NAME.pattern}", re.IGNORECASE)
FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:([^,}]+)")
MAX_DIFFERENCES = 3  # named in a message


@dataclass(frozen=True)
class RunConfig:
    """A command and everything that its result depends on."""

    command: str  # train, select or evaluate
    config: dict[str, Any]  # resolved, without `NOT_IN_RESULTS` and the cache folder of a judge
    inputs: dict[str, str] = field(default_factory=dict)  # of the files and folders in it, a digest as `_file_state`

    @classmethod
    def of(cls, command: str, config: DictConfig) -> "RunConfig":
        """The run configuration of a composed configuration."""
        check_headers(config)
        register_environment(config)
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        unused = {*NOT_IN_RESULTS, "trainer", *unused_keys(command, resolved)}
        kept = {name: value for name, value in resolved.items() if name not in unused}
        kept["precision"] = resolved["trainer"]["precision"]
        kept = _without_caches(kept)
        kept = redacted(json.loads(json.dumps(finite(kept))))  # as it is read back from a file
        return cls(command, kept, {text: _file_state(path) for _, text, path in existing_paths(kept)})

    def digest(self) -> str:
        """Of the command, the configuration and the state of the inputs: result.json records it as `run`."""
        return digest([self.command, self.config, self.inputs])

    def save(self, run_dir: Path) -> None:
        """Write it to the run folder."""
        write_json(run_dir / RUN_CONFIG, {"command": self.command, "config": self.config, "inputs": self.inputs})

    def discard(self, run_dir: Path) -> None:
        """Remove it from a run folder where a run failed and left nothing else to resume from."""
        others = (path for path in run_dir.iterdir() if path.name not in (RUN_CONFIG, ".hydra", ".lock"))
        if all(path.suffix == ".log" for path in others):
            (run_dir / RUN_CONFIG).unlink(missing_ok=True)

    def check(self, run_dir: Path) -> None:
        """Raise a UserError for a folder that holds a run with another configuration, finished or not."""
        saved = read_dict(run_dir / RUN_CONFIG)
        if not isinstance(saved.get("config"), dict):  # none, or not written by lpsel
            return
        theirs, ours = {"command": saved.get("command"), **saved["config"]}, {"command": self.command, **self.config}
        if differing := [each for each in _differences(theirs, ours) if not NOT_IN_VERDICTS.search(each[0])]:
            state = "a" if (run_dir / RESULT).is_file() else "an unfinished"
            named = differing[:MAX_DIFFERENCES]
            has, requested = (", ".join(f"{key}={pair[i]}" for key, *pair in named) for i in (0, 1))
            more = f" and {len(differing) - len(named)} more" if len(differing) > len(named) else ""
            problem = f"holds {state} run with {has}; this one has {requested}{more}"
            hint = "set another hydra.run.dir (in a sweep, hydra.sweep.dir), or delete the folder"
            raise UserError(run_dir, problem=problem, hint=hint)

    def finished(self, run_dir: Path) -> dict[str, Any] | None:
        """The result of the same run in this folder; None without one, or where its files or inputs have changed.

        None as well for an evaluation whose judge has left questions open, which the next run asks again.
        """
        saved, result = read_dict(run_dir / RUN_CONFIG), read_dict(run_dir / RESULT)
        if not result or (saved.get("command"), saved.get("config")) != (self.command, self.config):
            return None
        inputs = saved.get("inputs")
        if inputs != self.inputs:
            known = inputs if isinstance(inputs, dict) else {}
            changed = (name for name, state in self.inputs.items() if known.get(name) != state)
            log.warning("%s has changed since the last run; running again", next(changed, "An input"))
            return None
        written = [str(path) for name in ("subset", "selection", "model") if (path := result.get(name))]
        if result.get("format", FORMAT) != FORMAT or not all(Path(path).exists() for path in written):
            return None
        if result.get("run") != self.digest():  # of an earlier run, whose files this one may have begun to replace
            return None
        if unanswered := result.get("unanswered"):
            log.info("Asking the judge again, for %s missing judgments", unanswered)
            return None
        try:
            check_files(run_dir, result.get("sha256") or {})
        except Damaged as damage:
            log.warning("%s Running again.", damage)
            return None
        return result


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """The contents of a run folder's result.json, None if there is none; raises a UserError for another format."""
    result = read_dict(run_dir / RESULT)
    if (found := result.get("format", FORMAT)) != FORMAT:
        problem = f"has format {printable_line(ValueError(found))}, lpsel {__version__} reads format {FORMAT}"
        raise UserError(run_dir / RESULT, problem=problem, hint="use the version of lpsel that wrote it")
    return result or None


def unused_keys(command: str, config: Any) -> set[str]:
    """Keys of a configuration that its selection ignores: without scores, or with the target's, it needs no scorer."""
    if command != "train":
        return set()
    rule = config["selection"]
    embeds_with_scorer = SCORER in (rule.get("embedder"), config["cluster"].get("embedder"))
    dropped = "drop" in (rule.get("known"), rule.get("rising"))  # by recorded losses, with any rule
    scored = rule.get("epochs") is not None or bool(rule.get("combine")) or dropped
    unscored = not scored or rule.get("scored_by") == TARGET
    scorer = {"scorer"} if unscored and not embeds_with_scorer else set()
    return scorer | ({"pct"} if rule.get("pct") is not None else set())


def check_headers(config: DictConfig) -> None:
    """Raise a UserError for a key in a configuration file, which would be written to the run folder."""
    for key, value in leaves(OmegaConf.to_container(config, resolve=False)):
        sent = key.startswith(("judge.request.extra_headers.", "judge.request.extra_query."))
        if sent and SECRET_HEADER.search(key) and "${" not in str(value):
            problem = "a key in a configuration file would be written to the run folder"
            raise UserError(key, problem=problem, hint="write ${oc.env:NAME}, and set the variable NAME")


def register_environment(config: DictConfig) -> None:
    """Treat every environment variable whose value is in `judge.request` as a secret: custom headers hold keys."""
    written, resolved = ([*leaves(OmegaConf.to_container(config, resolve=resolve))] for resolve in (False, True))
    sent = " ".join(str(value) for key, value in resolved if key.startswith("judge.request."))
    # Of any key, since a request may refer to a key that refers to a variable.
    for name in {name for _, value in written for name in FROM_ENVIRONMENT.findall(str(value))}:
        if os.environ.get(name, "") in sent:
            register_secret(os.environ.get(name, ""))


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values in a configuration; the items of a list have the key of the list."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value, key)
    else:
        yield key, node


def _without_caches(node: Any) -> Any:
    """A configuration without the keys `cache_dir` in it."""
    if isinstance(node, dict):
        return {name: _without_caches(value) for name, value in node.items() if name != "cache_dir"}
    return node


def existing_paths(config: dict[str, Any]) -> Iterator[tuple[str, str, Path]]:
    """Keys and texts in a configuration that name a file or folder, with its path."""
    for key, text in leaves(config):
        if key.rpartition(".")[2] in NOT_PATHS:
            continue
        with suppress(OSError, ValueError, RuntimeError):  # not a name that a file could have, no such user
            if isinstance(text, str) and text and os.path.lexists(path := Path(text).expanduser()):
                yield key, text, path


def _file_state(path: Path) -> str:
    """A digest of the names, sizes and times of a file, or of the files in a folder and its subfolders.

    Logs and hidden files do not count.
    """
    paths = [path] if path.is_file() else [*path.glob("[!.]*"), *path.glob("[!.]*/[!.]*")]
    files = [file for file in paths if file.is_file() and file.suffix != ".log"]
    stats = sorted((str(file.relative_to(path.parent)), file.stat()) for file in files)
    return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def _differences(theirs: Any, ours: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in dict.fromkeys([*ours, *theirs]):
            yield from _differences(theirs.get(name), ours.get(name), f"{key}.{name}" if key else name)
    elif theirs != ours:
        yield key, "null" if theirs is None else theirs, "null" if ours is None else ours
