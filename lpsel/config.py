"""Find configuration files, and instantiate configuration nodes."""

import os
import re
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lpsel.errors import UserError


def config_dir() -> Path:
    """Folder with the configuration files: next to the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package.parent / "conf", package / "conf") if (folder / "base.yaml").is_file())


def configured(command: str) -> AbstractContextManager[None]:
    """Context manager in which Hydra's `compose` reads the configuration of a command."""
    return initialize_config_dir(str(config_dir()), version_base="1.3", job_name=command)


def group_dir(group: str) -> Path:
    """Folder with the files of `group=`; every model can be used as a scorer."""
    return config_dir() / ("model" if group == "scorer" else group)


def choices(group: str) -> list[str]:
    """Valid names for `group=`, without shared base files."""
    return sorted(file.stem for file in group_dir(group).glob("*.yaml") if not file.stem.startswith("_"))


def choice(group: str, name: str) -> DictConfig:
    """Load the file of a choice with its base files, without overrides from the command line."""
    node: Any = OmegaConf.load(group_dir(group) / f"{name}.yaml")
    bases = [choice(group, base) for base in node.pop("defaults", []) if base != "_self_"]
    merged: Any = OmegaConf.merge(*bases, node)
    return merged


def suggestion(name: str, known: Sequence[str]) -> str:
    """Start a hint with "did you mean ...?", if a known name differs only in case and punctuation, or is similar."""
    near = same_letters(name, known) or get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}? " if near else ""


def same_letters(name: str, known: Sequence[str]) -> list[str]:
    """Known names that differ from `name` only in case and punctuation."""

    def letters(text: str) -> str:
        return "".join(filter(str.isalnum, text.lower()))

    return [other for other in known if letters(other) == letters(name)]


def build(node: DictConfig) -> Any:
    """Instantiate a configuration node; raises a UserError if the class rejects a value."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, TypeError | ValueError):
            raise UserError(node.get("_target_"), problem=str(cause)) from error
        raise


def default_cache() -> str:
    from platformdirs import user_cache_dir

    return os.environ.get("LPSEL_CACHE") or user_cache_dir("lpsel")


def _stem(path: str | Sequence[str]) -> str:
    """Short name of a path, or the first of a list: `dolly` for data/dolly.jsonl.xz, `data` for data/*.jsonl."""
    first = path if isinstance(path, str) or not path else path[0]
    for part in reversed(Path(str(first)).parts):
        name = part
        for suffix in (".xz", ".gz", ".zst", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"):
            name = name.removesuffix(suffix)
        if name := re.sub(r"[*?\[\]]+", "", name):
            return name
    return ""


def _names(group: str, placeholder: str) -> str:
    """Format the choices of a group as lines for --help."""
    text = f"{placeholder}: {', '.join(choices(group))}"
    return textwrap.fill(text, 80, subsequent_indent="  ", break_on_hyphens=False)


OmegaConf.register_new_resolver("lpsel_names", _names, replace=True)
OmegaConf.register_new_resolver("lpsel_cache", default_cache, replace=True)
OmegaConf.register_new_resolver("lpsel_stem", _stem, replace=True)
# Every model can be used as a scorer.
for _name in choices("model"):
    ConfigStore.instance().store(name=_name, group="scorer", node={"defaults": [{"/model@_here_": _name}]})
