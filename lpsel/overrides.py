"""Translate the user's overrides for Hydra: accept paths instead of names, and add overrides that they imply."""

import os
import re
from pathlib import Path

from lpsel.config import choices, group_dir
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
# Defaults for a real model, as in the paper, and for scoring a user's dataset.
WITH_REAL_MODEL = {"dataset": "alpaca", "scorer": "opt-350m"}
REAL_SCORER = "smollm2-135m"


def hydra_arguments(command: str, arguments: list[str]) -> list[str]:
    """Rewrite the user's arguments for Hydra.

    - `model=X` with a folder or Hub id becomes `model=local model.path=X`; the same for scorer and dataset. evaluate's
      `model=` also takes several run folders, which a config group cannot, so it becomes `models=`.
    - `model.path=X` alone implies `model=local`, so that the path is not combined with another model's recipe.
    - Unless they are set, a real model implies the paper's dataset and scorer, and a dataset other than the embedded
      one implies a real scorer. An experiment sets its own.
    - If several ranks start together, only the main process uses the run folder named by the time.
    """
    rewritten: list[str] = []
    for argument in arguments:
        rewritten += _rewrite(command, argument) if _is_override(argument) else [argument]
    values = dict(argument.split("=", 1) for argument in rewritten if _is_override(argument))
    groups = PATH_GROUPS[command]
    implied = [f"{group}=local" for group in groups if f"{group}.path" in values and group not in values]
    if command != "evaluate" and "experiment" not in values:
        for group, name in _defaults(command, values).items():
            if group not in values and f"{group}.path" not in values:
                implied.append(f"{group}={name}")
    if started_together() and not is_main_process() and "hydra.run.dir" not in values:
        implied += [f"hydra.run.dir={temporary_folder('lpsel-rank-')}", "hydra.output_subdir=null"]
    # Next to the user's overrides: argparse expects all of them in one place, before or after flags like --multirun.
    first = next((i for i, argument in enumerate(rewritten) if _is_override(argument)), len(rewritten))
    return [*rewritten[:first], *implied, *rewritten[first:]]


def _is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def _defaults(command: str, values: dict[str, str]) -> dict[str, str]:
    """Dataset and scorer implied by the given options."""
    models = set(values.get("model", "tiny").split(","))
    has_real_model = "model.path" in values or bool(models - TINY_MODELS)
    if command == "train" and has_real_model:
        return WITH_REAL_MODEL
    datasets = set(values.get("dataset", "embedded").split(","))
    has_own_data = "dataset.path" in values or bool(datasets - EMBEDDED)
    return {"scorer": REAL_SCORER} if has_own_data and "scores" not in values else {}


def _rewrite(command: str, override: str) -> list[str]:
    """Rewrite an override as one or two that Hydra can parse."""
    key, value = override.split("=", 1)
    if command == "evaluate" and key == "model":
        return [f"models={_quoted(value)}"]
    if key in PERCENTAGES:
        return [f"{key}={_quoted(PERCENT.sub('', value))}"]
    if key in PATH_GROUPS[command] and (os.path.lexists(value) or not HYDRA_SYNTAX.match(value)):
        return _choice_or_path(key, value)
    return [f"{key}={_quoted(value)}"]


def _choice_or_path(group: str, value: str) -> list[str]:
    """`group=value`, or `group=local group.path=value` for paths and Hub ids; raises a UserError for a mix of both."""
    as_path = [f"{group}=local", f"{group}.path={_quoted(value)}"]
    if value.startswith("[") and group == "dataset":
        return as_path
    is_single = os.path.lexists(value) or IN_QUOTES.fullmatch(value)
    parts = [value] if is_single else [part.strip() for part in value.split(",")]
    choice_of = {name: name for name in choices(group)}
    if any("/" in part for part in parts):
        choice_of |= {path: name for path, name in _names_by_path(group).items() if not Path(path).exists()}
    paths = [part for part in parts if part not in choice_of and _is_path(group, part.strip("'\""))]
    if not paths:
        return [f"{group}={','.join(choice_of.get(part, part) for part in parts)}"]
    if len(paths) < len(parts):
        hint = f"run one sweep over names, and one over {group}.path"
        raise UserError(group, value, f"{', '.join(paths)} is a path, the others are names", hint)
    return as_path


def _is_path(group: str, name: str) -> bool:
    """Whether a value that is not a choice is a file, folder, glob or Hub id, and not a misspelled name."""
    from lpsel.data.formats import reader_of

    like_a_file = group == "dataset" and (reader_of(name) is not None or GLOB.search(name) is not None)
    return "/" in name or name.startswith((".", "~")) or like_a_file or os.path.lexists(name)


def _names_by_path(group: str) -> dict[str, str]:
    """Names in conf by the path or Hub id that they stand for."""
    from omegaconf import OmegaConf

    files = {name: OmegaConf.load(group_dir(group) / f"{name}.yaml") for name in choices(group)}
    return {path: name for name, file in files.items() if (path := OmegaConf.select(file, "path"))}


def _quoted(value: str) -> str:
    """Quote a value if Hydra cannot parse it (with =, brackets or non-ASCII letters), and expand ~."""
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
