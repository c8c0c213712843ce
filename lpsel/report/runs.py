"""Find and describe run folders.

Folders without a readable result are kept with the reason, so that a sweep can be reported while it is running.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lpsel.errors import UserError, is_number
from lpsel.run_config import RESULT, RUN_CONFIG, leaves, read_result
from lpsel.storage import digest, read_dict

NO_SETTINGS = ("seed", "pct", "folder", "trainable_parameters", "commit")  # keys that do not define a series
TRAINING = ("base_model", "model", "adapter", "optimizer", "precision")  # keys of training settings
UNNAMED = ("path", "fingerprint", "license", "_target_")  # keys that define a series but are not in its label
MOST_NAMED = 3  # settings in a label
EXPLORER = "explore.html"  # page of lpsel explore in a run folder
REPORTED = ("train", "select", "evaluate", "votes", "agreement")  # commands whose runs a report includes
COMMANDS = (*REPORTED, "validate")

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its result.json."""

    folder: Path
    result: dict[str, Any]
    variant: str = ""  # settings that differ from other runs with the same selection or target
    conditions: str = ""  # digest of all training settings except the target, the selected rows and the seed

    @property
    def command(self) -> str:
        return str(self.result["command"])

    def get(self, *keys: str) -> Any:
        """Value of nested keys in result.json, None if a key is missing."""
        return nested(self.result, *keys)

    @property
    def rule(self) -> str:
        return rule_name(self.result)

    @property
    def pct(self) -> float | None:
        """Requested percentage of the data; 100 for selection=full."""
        return 100.0 if self.rule == "full" else number(self.get("pct"))

    @property
    def pct_of(self) -> str | None:
        """Unit of the percentage: rows or tokens; None if the run selects no rows."""
        return None if self.pct is None else self.get("settings", "pct_of") or "rows"

    @property
    def target(self) -> str:
        return str(self.get("base_model", "name") or "–")

    @property
    def trained_as(self) -> tuple[str, str]:
        """Target and training settings; equal for runs that differ only in the selected rows and the seed."""
        return self.target, self.conditions

    @property
    def scorer(self) -> str:
        return str(self.get("scorer", "name") or "–")

    @property
    def bucket(self) -> str | None:
        return str(bucket) if (bucket := self.get("bucket")) else None

    @property
    def name(self) -> str:
        """Name of the folder, prefixed with the sweep's name for a numbered job."""
        return f"{self.folder.parent.name}/{self.folder.name}" if self.folder.name.isdigit() else self.folder.name

    @property
    def series(self) -> str:
        """All settings in which runs differ, except the percentage and the seed."""
        return self.label()

    def label(self, *, scorer: bool = True, target: bool = True) -> str:
        """Rule, bucket, scorer, settings that differ from similar runs, and target."""
        bucket = f", {self.bucket}" if self.bucket else ""
        by = f" ({self.scorer})" if scorer and self.scorer != "–" else ""
        return f"{self.rule}{bucket}{by}{self.variant}" + (f" → {self.target}" if target else "")

    @property
    def tokens(self) -> float | None:
        """Number of training tokens."""
        return number(self.get("training", "tokens"))

    @property
    def flops(self) -> float | None:
        """FLOPs of scoring and training, even if scores were reused; for a selection, FLOPs of its scores."""
        for keys in (("ledger", "total"), ("scoring",), ("cost",)):  # of lpsel train, select and validate
            if flops := self.get(*keys, "flops"):
                return number(flops)
        return None

    @property
    def flops_of_all_rows(self) -> float | None:
        """FLOPs of training on all rows."""
        return number(self.get("ledger", "everything", "flops"))

    def flops_percent(self, part: str) -> float | None:
        """FLOPs of a part of the ledger as a percentage of training on all rows."""
        spent, all_rows = number(self.get("ledger", part, "flops")), self.flops_of_all_rows
        return None if spent is None or not all_rows else 100 * spent / all_rows

    @property
    def seconds(self) -> float | None:
        """Device seconds of scoring and training; for an evaluation, of its models."""
        if self.command == "validate":
            return number(self.get("cost", "seconds"))
        if self.command != "evaluate":
            return number(self.get("ledger", "total", "device_seconds") or self.get("scoring", "device_seconds"))
        spent: list[float | None] = []
        for entry in [*self.entries("models"), *self.entries("answers")]:
            seconds = entry.get("seconds")  # a number, or numbers by part of the work
            spent += map(number, seconds.values() if isinstance(seconds, dict) else [seconds])
        known = [seconds for seconds in spent if seconds is not None]
        return sum(known) if known else None

    @property
    def models(self) -> list[dict[str, Any]]:
        """Results of each model of an evaluation."""
        return self.entries("models") or [self.result]

    def entries(self, key: str) -> list[dict[str, Any]]:
        """Dictionaries in a list of result.json; empty if there is no list."""
        value = self.get(key)
        return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


@dataclass
class Runs:
    """Finished runs, and skipped folders with the reason."""

    finished: list[Run] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def by_command(self, *commands: str) -> list[Run]:
        return [run for run in self.finished if run.command in commands]

    @property
    def explored(self) -> list[Run]:
        """Finished runs with a page of lpsel explore."""
        return [run for run in self.finished if (run.folder / EXPLORER).is_file()]


def find_runs(paths: Sequence[str | Path]) -> Runs:
    """Read run folders, given by their paths or by folders that contain them."""
    folders: dict[Path, None] = {}
    for path in paths:
        top = Path(path).expanduser()
        if not top.is_dir():
            raise UserError(path, problem="no such folder", hint="name run folders, or folders that contain them")
        folders |= dict.fromkeys(folder.resolve() for folder in _run_folders(top))
    read = {folder: _read(folder) for folder in folders}
    finished = [run for run in read.values() if isinstance(run, Run)]
    return Runs(with_variants(finished), [(folder, why) for folder, why in read.items() if isinstance(why, str)])


def with_variants(runs: Sequence[Run]) -> list[Run]:
    """Set `variant` for runs with the same selection and target that differ in other settings.

    Runs with the same target and different training settings also get one, whatever they select.
    """
    selecting = [run for run in runs if run.command in ("train", "select")]
    settings = {run.folder: _settings(run) for run in selecting}
    training_settings = {run.folder: _training(settings[run.folder]) for run in selecting if run.command == "train"}
    by_target = grouped((run for run in selecting if run.command == "train"), lambda run: run.target)
    variants: dict[Path, str] = {}
    for (_, target), same in grouped(selecting, lambda run: (run.series, run.target)).items():
        group = {run.folder: settings[run.folder] for run in same}
        of_target = [training_settings[run.folder] for run in by_target.get(target, [])]
        keys = [*_differing([*group.values()]), *_differing(of_target)]
        variants |= _variants(group, list(dict.fromkeys(keys)))
    conditions = {folder: digest(values)[:8] for folder, values in training_settings.items()}
    return [
        replace(run, variant=variants.get(run.folder, ""), conditions=conditions.get(run.folder, "")) for run in runs
    ]


def short_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Short label for every series: the rule, and other settings in which the series differ."""
    first = {run.series: run for run in runs}
    several_scorers = len({run.scorer for run in first.values()} - {"–"}) > 1
    several_targets = len({run.target for run in first.values()}) > 1
    labels = {series: run.label(scorer=several_scorers, target=several_targets) for series, run in first.items()}
    return labels if len({*labels.values()}) == len(labels) else {series: series for series in labels}


def pct_unit(runs: Iterable[Run]) -> str:
    """Unit of the percentages of selections: rows, tokens, or both if they differ."""
    units = {run.pct_of for run in runs if run.rule != "full"} - {None}
    return " or ".join(sorted(map(str, units))) or "rows"


def _differing(settings_of_runs: Sequence[dict[str, str]]) -> list[str]:
    """Keys in which the settings of runs differ."""
    keys = dict.fromkeys(key for settings in settings_of_runs for key in settings)
    return [key for key in keys if len({settings.get(key) for settings in settings_of_runs}) > 1]


def _variants(group: dict[Path, dict[str, str]], keys: Sequence[str]) -> dict[Path, str]:
    """Format the settings `keys` of each run as text, such as `, length=matched`; different values differ in text."""
    values = {folder: [settings.get(key, "–") for key in keys] for folder, settings in group.items()}
    texts = {folder: _variant(zip(keys, of_run, strict=True)) for folder, of_run in values.items()}
    if len(set(texts.values())) < len(set(map(tuple, values.values()))):
        return {folder: f"{text}, #{digest(values[folder])[:4]}" for folder, text in texts.items()}
    return texts


def _variant(settings: Iterable[tuple[str, str]]) -> str:
    """Format the first settings that labels name: `scorer.name` by its parent, other keys by their last part."""
    named = [(key.removesuffix(".name").rpartition(".")[2], value) for key, value in settings]
    texts = dict.fromkeys(f", {name}={value}" for name, value in named if name not in UNNAMED)
    return "".join([*texts][:MOST_NAMED])


def _training(settings: dict[str, str]) -> dict[str, str]:
    """Settings that training depends on; for the dataset, only its content."""
    return {k: v for k, v in settings.items() if k.split(".")[0] in TRAINING or k == "dataset.fingerprint"}


def _settings(run: Run) -> dict[str, str]:
    """Settings that the result of a run depends on, except the percentage and the seed, as text by key."""
    of_result = {name: run.get(name) for name in ("settings", "budget", "dataset", "base_model", "adapter")}
    configured = read_dict(run.folder / RUN_CONFIG).get("config") or {}
    texts: dict[str, str] = {}
    for key, value in [*leaves(of_result), *leaves(configured)]:
        if value is not None and key.rpartition(".")[2] not in NO_SETTINGS:
            texts[key] = f"{texts[key]} {value}" if key in texts else str(value)
    return texts


def _run_folders(top: Path) -> Iterator[Path]:
    """Yield run folders in `top`, without their subfolders; `top` itself also if it only has other files."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for folder, subfolders, files in os.walk(top, onerror=fail):
        if RESULT in files or RUN_CONFIG in files or (Path(folder) == top and files and not subfolders):
            subfolders.clear()
            yield Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def _read(folder: Path) -> Run | str:
    """Read the run in a folder; returns the reason if there is none."""
    if not (folder / RESULT).exists():
        return f"not finished: no {RESULT}"
    try:
        result = read_result(folder)
    except UserError as error:
        return f"{RESULT} {error.problem}"
    except OSError:
        result = None
    if result is None:
        return f"{RESULT} is not readable"
    return Run(folder, result) if result.get("command") in COMMANDS else f"not a run of {', '.join(COMMANDS)}"


def rule_name(result: Mapping[str, Any]) -> str:
    """Rule in a result.json, with its column, or the parts that it combines and their weights."""
    settings = nested(result, "settings")
    parts, column = nested(settings, "combine"), nested(settings, "column")
    if isinstance(parts, dict):
        column = ", ".join(name if weight == 1 else f"{weight} {name}" for name, weight in parts.items())
    return str(result.get("rule") or "?") + (f"({column})" if column else "")


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Group items by key; keys and items keep their order."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def nested(value: Any, *keys: str) -> Any:
    """Value of nested keys, None if a key is missing or its parent is not a dictionary."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any) -> float | None:
    """Convert a finite number to a float; None for any other value."""
    return float(value) if is_number(value) else None
