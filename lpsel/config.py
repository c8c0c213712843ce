"""Where the configuration files are, and from a configuration node to the object it describes."""

from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lpsel.errors import UserError


def _user_cache() -> str:
    from platformdirs import user_cache_dir

    return user_cache_dir("lpsel")


def _stem(path: str) -> str:
    """What a file, folder or Hub id is called: `data/dolly.jsonl.xz` is dolly, `org/opt-350m` is opt-350m."""
    name = Path(path).name
    for ending in (".xz", ".gz", ".zst", ".jsonl", ".json", ".csv", ".parquet"):
        name = name.removesuffix(ending)
    return name


OmegaConf.register_new_resolver("lpsel_user_cache", _user_cache, replace=True)
OmegaConf.register_new_resolver("lpsel_stem", _stem, replace=True)


def config_dir() -> Path:
    """The folder with the configuration files: in a checkout beside the package, in a wheel inside it."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package.parent / "conf", package / "conf") if (folder / "base.yaml").is_file())


def build(node: DictConfig) -> Any:
    """Instantiate a configuration node; a mistake its class finds stays the user's one-line error."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, TypeError | ValueError):
            raise UserError(f"{node.get('_target_')}: {cause}") from error
        raise
