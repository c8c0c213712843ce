"""The user's overrides as Hydra needs them: paths in place of names, and what an option implies for others."""

import os
import re
from pathlib import Path

from lpsel.config import choices, config_dir
from lpsel.distributed import is_main_process, started_together, temporary_folder
from lpsel.errors import UserError

# Groups whose value may be a path or Hub id instead of a name in conf.
PATH_GROUPS = {"train": ("model", "scorer", "dataset"), "select": ("scorer", "dataset"), "evaluate": ("dataset",)}
PERCENTAGES = ("pct", "selection.pct")
PERCENT = re.compile(r"(?<=\d) ?%")
HYDRA_SYNTAX = re.compile(r"\w+\(|.*\$\{")  # a sweep function such as choice(a,b), or an interpolation
GLOB = re.compile(r"[*?]")
IN_QUOTES = re.compile(r"'[^']*'|\"[^\"]*\"")

EMBEDDED = {"embedded", "embedded-uniform", "embedded-held-out"}
TINY_MODELS = {"tiny", "tiny-target"}
# What goes with a real model, as in the paper, and what scores a dataset of the user's own; unless set otherwise.
WITH_REAL_MODEL = {"dataset": "alpaca", "scorer": "opt-350m"}
REAL_SCORER = "smollm2-135m"


def hydra_arguments(command: str, arguments: list[str]) -> list[str]:
    """The user's arguments with paths in place of names, and with the overrides that they imply.

    - `model=X` with a folder or Hub id means `model=local model.path=X`; the same for scorer and dataset. evaluate's
      `model=` also takes run folders, several of which no config group can, so it becomes `models=`.
    - `model.path=X` alone implies `model=local`, so that the path is not combined with another model's recipe.
    - A real model implies the paper's dataset and scorer, and a dataset other than the embedded one a real scorer,
      where none are set. An experiment sets its own.
    - Of several ranks that start together, only the main one uses the run folder named after the time.

    Raises:
        UserError: a sweep mixes names and paths.
    """
    rewritten = [part for a in arguments for part in (_rewritten(command, a) if _is_override(a) else [a])]
    given = dict(a.split("=", 1) for a in rewritten if _is_override(a))
    groups = PATH_GROUPS[command]
    implied = [f"{group}=local" for group in groups if f"{group}.path" in given and group not in given]
    if command != "evaluate" and "experiment" not in given:
        defaults = _defaults(command, given)
        implied += [f"{g}={name}" for g, name in defaults.items() if g not in given and f"{g}.path" not in given]
    if started_together() and not is_main_process() and "hydra.run.dir" not in given:
        implied += [f"hydra.run.dir={temporary_folder('lpsel-rank-')}", "hydra.output_subdir=null"]
    # Next to the user's own overrides: argparse takes them from one place only, before or after flags like --multirun.
    place = next((i for i, a in enumerate(rewritten) if _is_override(a)), len(rewritten))
    return [*rewritten[:place], *implied, *rewritten[place:]]


def _is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def _defaults(command: str, given: dict[str, str]) -> dict[str, str]:
    """The dataset and scorer that the options given so far imply."""
    real_model = "model.path" in given or not set(given.get("model", "tiny").split(",")) <= TINY_MODELS
    if command == "train" and real_model:
        return WITH_REAL_MODEL
    own_data = "dataset.path" in given or not set(given.get("dataset", "embedded").split(",")) <= EMBEDDED
    return {"scorer": REAL_SCORER} if own_data and "scores" not in given else {}


def _rewritten(command: str, override: str) -> list[str]:
    """An override as one or two that Hydra can read."""
    key, value = override.split("=", 1)
    if command == "evaluate" and key == "model":
        key = "models"
    elif key in PERCENTAGES:
        value = PERCENT.sub("", value)
    elif key in PATH_GROUPS[command] and not HYDRA_SYNTAX.match(value):
        return _choice_or_path(key, value)
    return [f"{key}={_quoted(value)}"]


def _choice_or_path(group: str, value: str) -> list[str]:
    """`group=value`, or `group=local group.path=value` where the values are paths or Hub ids."""
    as_path = [f"{group}=local", f"{group}.path={_quoted(value)}"]
    if value.startswith("[") and group == "dataset":
        return as_path
    known = {name: name for name in choices(group)}
    single = os.path.lexists(value) or IN_QUOTES.fullmatch(value)
    names = [value] if single else [name.strip() for name in value.split(",")]
    if any("/" in name for name in names):
        known |= {path: name for path, name in _hub_ids(group).items() if not Path(path).exists()}
    paths = [name for name in names if name not in known and _is_path(group, name.strip("'\""))]
    if not paths:
        return [f"{group}={','.join(known.get(name, name) for name in names)}"]
    if len(paths) < len(names):
        hint = f"run one sweep over names, and one over {group}.path"
        raise UserError(group, value, f"{', '.join(paths)} is a path, the others are names", hint)
    return as_path


def _is_path(group: str, name: str) -> bool:
    """Whether a value that is not a choice is a file, folder, glob or Hub id, rather than a misspelled name."""
    from lpsel.data.formats import reader_of

    like_a_file = group == "dataset" and (reader_of(name) is not None or GLOB.search(name) is not None)
    return "/" in name or name.startswith((".", "~")) or like_a_file or os.path.lexists(name)


def _hub_ids(group: str) -> dict[str, str]:
    """The names in conf by the Hub ids that they stand for."""
    from omegaconf import OmegaConf

    folder = config_dir() / ("model" if group == "scorer" else group)
    files = {name: OmegaConf.load(folder / f"{name}.yaml") for name in choices(group) if name != "local"}
    return {path: name for name, file in files.items() if (path := OmegaConf.select(file, "path"))}


def _quoted(value: str) -> str:
    """A value, quoted if Hydra cannot read it: with =, brackets or non-ASCII letters, or with ~, which is expanded."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if value[:1] in ("", "[", "{", "'", '"'):
        return value
    try:
        OverridesParser.create().parse_override(f"x={value}")
        return value
    except HydraException:
        parts = [value] if os.path.lexists(value) else value.split(",")
        paths = (os.path.expanduser(part.strip()) for part in parts)
        escaped = (path.replace("\\", "\\\\").replace("'", "\\'") for path in paths)
        return ",".join(f"'{part}'" for part in escaped)
