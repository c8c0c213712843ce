"""What is wrong with a command line, in our words: Hydra's own are long, and would repeat a key that was given."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lpsel.errors import UserError
from lpsel.storage import writable

SECRET = re.compile(
    r"(?:(?:^|[\W_])(?P<named>\w*(?:api_?key|access_?key|passw(?:or)?d|secret|authorization|auth_?token))"
    r"|(?:^|\W)(?P<token>(?:hf_)?token))"
    r"['\"]?\s*[:=]",
    re.IGNORECASE,
)
PASSWORD_IN_ADDRESS = re.compile(r"(?P<scheme>\w+://)[^/\s,\[\]]*@(?P<host>[^/\s,\[\]]*)")
NO_CHOICE = re.compile(r"Could not find '(?P<group>[^']+)/(?P<name>[^'/]*)'")
OPTIONS = re.compile(r"Available options in '[^']*':\n(?P<names>(?:\t.*\n?)+)")
NO_KEY = re.compile(r"Could not override '(?P<key>[^']+)'")
NO_LIST = re.compile(r"Ambiguous value for argument '(?P<key>[^=']+)=(?P<value>.*)'")


def check_arguments(arguments: Sequence[str]) -> None:
    """Look at the command line before Hydra writes it into the run folder.

    Raises:
        UserError: a key or password in it, an override without a name, a run folder that cannot be made.
    """
    for argument in arguments:
        if secret := SECRET.search(argument):
            raise UserError(
                f"{secret['named'] or secret['token']}: a key on the command line would be written into the run "
                "folder; put it into the environment (OPENAI_API_KEY, or the name that judge.key_env= gives; HF_TOKEN; "
                "WANDB_API_KEY)."
            )
        if address := PASSWORD_IN_ADDRESS.search(argument):
            raise UserError(
                f"{address['scheme']}...@{address['host']}: a user or password in an address would be written into the "
                "run folder; leave it out, keys come from the environment."
            )
        if argument.startswith("="):
            raise UserError(f"{argument}: has no name before the =; say NAME=VALUE.")
        name, _, folder = argument.partition("=")
        if name == "hydra.run.dir" and "${" not in folder and "--cfg" not in arguments:
            try:
                writable(Path(folder.strip("'\"")))  # Hydra takes quotes off as well
            except OSError as error:
                raise UserError(
                    f"hydra.run.dir={folder}: cannot be written ({error.strerror}); give hydra.run.dir=FOLDER that you "
                    "may write to."
                ) from error


def in_our_words(error: Exception, command: str) -> str:
    """What Hydra says of a choice or a name that is not there, with those that are near; other messages as they are."""
    text = str(error)
    if choice := NO_CHOICE.search(text):
        options = OPTIONS.search(text)
        known = options["names"].split() if options else []
        near = _near(choice["name"], known)
        all_of_them = f"give one of {', '.join(known)}" if len(known) <= 20 else f"lpsel {command} --help lists all"
        return f"{choice['group']}={choice['name']}: no such choice; {near}{all_of_them}."
    if key := NO_KEY.search(text):
        near = _near(key["key"], list(_keys(command)))
        return f"{key['key']}: no such setting; {near}lpsel {command} --help lists all."
    if several := NO_LIST.search(text):
        name, value = several["key"], several["value"]
        return f"{name}={value}: several values; say -m {name}={value} for a run each, or {name}=[{value}] for a list."
    if "See https://hydra.cc" in text:
        told = text.partition("See https://hydra.cc")[0].strip()
        return (
            f"{told}: not NAME=VALUE; put quotes around a value with special characters, as in 'name=\"a value\"' or "
            '\'name=["a","b"]\'.'
        )
    return text


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _keys(command: str) -> Iterator[str]:
    """The names that an override of a command can have."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lpsel.config import config_dir

    def inside(node: Any, before: str) -> Iterator[str]:
        if isinstance(node, dict):
            for name, value in node.items():
                yield f"{before}{name}"
                yield from inside(value, f"{before}{name}.")

    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield from inside(OmegaConf.to_container(compose(command), resolve=False), "")
