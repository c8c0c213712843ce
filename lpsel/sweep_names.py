"""Names of the folders of sweeps and of their jobs, as OmegaConf resolvers for conf/base.yaml."""

import re
from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lpsel.run_config import NOT_IN_RESULTS, unused_keys
from lpsel.storage import digest

UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")  # in folder names
BETWEEN = "__"  # separates options in the name of a job's folder
GROUP = re.compile("[.@]")  # separates the group of an override from the rest of its key
MAX_NAME = 100  # characters in the name of a job's folder; file systems allow 255 bytes
FIRST = ("pct", "seed", "selection")  # options that a name keeps if it is too long for all options


def sweep_name(overrides: Any, params: Any) -> str:
    """Reproducible name of a sweep's folder: the swept options and a digest of all overrides."""
    used = _by_key([*(f"{key}={value}" for key, value in (params or {}).items()), *overrides], {"experiment"})
    swept = [key for key, value in used.items() if "," in value or "range(" in value]
    name = UNSAFE.sub("-", used.get("experiment") or "-".join(swept) or "sweep")
    return f"{name[:60]}-{digest(used)[:8]}"


def job_name(overrides: Any, command: str, *, _root_: DictConfig) -> str:
    """Name of a job's folder in its sweep: the overrides that the job uses.

    Jobs with the same result share a folder; for example, training on all rows does not depend on the percentage.
    """
    unused = unused_keys(command, _root_)
    used = {key: value for key, value in _by_key(overrides).items() if GROUP.split(key)[0] not in unused}
    name = BETWEEN.join(f"{key}-{value}" for key, value in used.items())
    is_safe = not UNSAFE.search(name) and not any(BETWEEN in value for value in used.values())
    if is_safe and len(name) <= MAX_NAME:
        return name or "job"
    ordered = sorted(used.items(), key=lambda item: item[0] not in FIRST)
    short = BETWEEN.join(f"{key}-{value.rpartition('/')[2]}" for key, value in ordered)
    return f"{UNSAFE.sub('-', short)[: MAX_NAME - 10]}{BETWEEN}{digest(used)[:8]}"


def _by_key(overrides: Any, included: Collection[str] = ()) -> dict[str, str]:
    """Overrides that change results or are in `included`, sorted by key; the last value of a key wins, as in Hydra."""
    values = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    ignored = {*NOT_IN_RESULTS, "trainer"} - {*included}
    used = [key for key in sorted(values) if key == "trainer.precision" or GROUP.split(key)[0] not in ignored]
    return {key: values[key] for key in used}


OmegaConf.register_new_resolver("lpsel_sweep", sweep_name, use_cache=True, replace=True)
OmegaConf.register_new_resolver("lpsel_job", job_name, replace=True)
