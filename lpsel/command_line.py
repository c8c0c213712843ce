"""Check the command line and the run folder before Hydra writes files, and end a command with a one-line error."""

import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lpsel.distributed import exit_rank, is_main_process
from lpsel.errors import ReportedByMainProcess, UserError
from lpsel.redact import printable, redact
from lpsel.storage import check_writable

# API keys in an option, a mapping or a header; a reference such as ${oc.env:MY_KEY} is not a key.
SECRET = re.compile(
    r"(?P<name>[\w-]*(?:(?:api|access|secret|private|subscription)[-_]?key|(?:auth|access|bearer|session)[-_]?token|passw(?:or)?d|secret"
    r"|authorization|cookies?)|(?<![\w-])x-[\w-]*(?:auth|key|token)"
    r"|(?<![\w-])(?:key|(?:hf[-_])?token))"
    r"['\"]?\s*[:=](?![^,}]*\$\{oc\.env:)",
    re.IGNORECASE,
)
# OpenAI-style, Hugging Face, GitHub, GitLab, Groq, xAI, NVIDIA, Perplexity, Google, AWS, JSON Web Tokens
KEY = re.compile(
    r"(?<![A-Za-z0-9])(?P<name>sk-|hf_|gh[pousr]_|github_pat_|glpat-|gsk_|xai-|nvapi-|pplx-|AIza|AKIA|eyJ)(?:[\w-]*[-_])?[A-Za-z0-9]{16,}"
)
# A user (but not several endpoints in a list), or a query, which may contain a signature.
PRIVATE_URL = re.compile(
    r"(?P<scheme>\w+)://(?:[^/?#\s]*@(?!https?://)(?P<host>[^/?#\s,\]]*)|(?P<before>[^/?#\s]+)[^?\s]*\?)"
)
NO_CHOICE = re.compile(r"Could not find '(?P<group>[^']+)/(?P<name>[^'/]*)'")
NO_KEY = re.compile(r"Could not override '(?P<key>[^']+)'")
AMBIGUOUS = re.compile(r"Ambiguous value for argument '(?P<key>[^=']+)=(?P<value>.*)'")
MAX_LISTED = 20  # choices listed in a message
SECONDS_FOR_MAIN_PROCESS = 5  # time to print an error: torchrun ends all ranks when the first one exits


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise a UserError for a key or an invalid option before Hydra writes the command line to the run folder."""
    from hydra._internal.utils import get_args_parser

    # Whether each of Hydra's flags takes a value
    flags = {flag: action.nargs != 0 for action in get_args_parser()._actions for flag in action.option_strings}
    for position, argument in enumerate(arguments):
        if secret := SECRET.search(argument) or KEY.search(argument):
            raise UserError(
                secret["name"],
                problem="a key on the command line would be written to the run folder",
                hint="set it in the environment (OPENAI_API_KEY or the name in judge.key_env, HF_TOKEN, WANDB_API_KEY)",
            )
        if url := PRIVATE_URL.search(argument):
            raise UserError(
                f"{url['scheme']}://{url['before'] or '...@' + url['host']}",
                problem="a user, password or query in a URL would be written to the run folder",
                hint="remove it; keys are read from the environment",
            )
        name, equals, value = argument.partition("=")
        has_dashes = name.startswith("-") and name not in flags
        is_value_of_flag = position > 0 and flags.get(arguments[position - 1], False)
        is_accepted = bool(equals) or is_value_of_flag or argument.startswith(("-", "~"))
        if has_dashes or not is_accepted:
            intended = _guess_override(name, value, arguments[position + 1 :])
            check_arguments([intended])
            problem = "options have no dashes" if has_dashes else "options are NAME=VALUE"
            raise UserError(name, problem=problem, hint=f"use {intended}")
        if argument.startswith("="):
            raise UserError(argument, problem="has no name before the =", hint="use NAME=VALUE")
        if name == "hydra.run.dir" and "${" not in value and "--cfg" not in arguments:
            check_writable(name, Path(value.strip("'\"")).expanduser())  # Hydra removes quotes as well


def _guess_override(name: str, value: str, following: Sequence[str]) -> str:
    """Guess the intended override for an option with dashes, an option without a value, or a single path."""
    path = Path(name)
    if "/" in name or path.exists():
        return f"{'model' if path.is_dir() else 'dataset'}={name}"
    if not value:
        next_argument = next((argument.lstrip("=") for argument in following if argument != "="), "")
        is_value = re.fullmatch(r"[^-=][^=]*", next_argument)
        value = next_argument if is_value else "VALUE"
    return f"{name.lstrip('-').replace('-', '_')}={value}"


def check_run(command: str, config: Any) -> None:
    """Raise a UserError before Hydra writes files if the run folder is rejected or the configuration contains a key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from lpsel.output_folder import check_run_folder
    from lpsel.run_config import RunConfig, check_headers

    if not is_main_process() or config.get("dry_run"):
        return
    with suppress(OmegaConfBaseException, OSError):  # the job raises and reports the same error
        check_headers(config)
        folder = Path(str(config.hydra.run.dir)).expanduser().resolve()
        if folder.is_dir():
            job_config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
            RunConfig.of(command, job_config).check(folder)
            check_run_folder(command, job_config, folder)


def fail(prog: str, error: Exception) -> NoReturn:
    """Print an error in one line, and exit; ranks whose error the main process prints wait for it."""
    if isinstance(error, ReportedByMainProcess):
        time.sleep(SECONDS_FOR_MAIN_PROCESS)
    else:
        print(f"{prog}: {printable(redact(' '.join(str(error).split())))}", file=sys.stderr)
    exit_rank(2)


def is_user_error(error: Exception) -> bool:
    """Whether the user can fix an error; errors of Hydra and OmegaConf are about options."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, UserError | HydraException | OmegaConfBaseException)


def as_user_error(error: Exception, command: str) -> UserError:
    """Convert Hydra's error about a choice, a key or a value, and suggest similar names; keep other messages."""
    from lpsel.config import choices, suggestion
    from lpsel.overrides import PATH_GROUPS

    if isinstance(error, UserError):
        return error
    command = command if command in PATH_GROUPS else "train"  # whose options `lpsel validate` takes
    message = str(error)
    see_help = f"See lpsel {command} --help"
    if match := NO_CHOICE.search(message):
        group, name = match["group"], match["name"]
        known = choices(group.rsplit("/", 1)[-1].partition("@")[0])
        available = f"Use one of {', '.join(known)}" if 0 < len(known) <= MAX_LISTED else see_help
        if group in PATH_GROUPS[command]:
            available += f", or set {group}.path={name} for a Hub id"
        return UserError(group, name, "unknown choice", suggestion(name, known) + available)
    if match := NO_KEY.search(message):
        hint = suggestion(match["key"], sorted(_option_names(command))) + see_help
        return UserError(match["key"], problem="unknown option", hint=hint)
    if match := AMBIGUOUS.search(message):
        name, value = match["key"], match["value"]
        hint = f"use -m {name}={value} for one run each, or {name}=[{value}] for a list"
        return UserError(name, value, "several values", hint)
    if "See https://hydra.cc" in message:
        hint = """quote values with special characters, as in 'name="a value"' or 'name=["a","b"]'"""
        return UserError(message.partition("See https://hydra.cc")[0].strip(), problem="not NAME=VALUE", hint=hint)
    return UserError(message)


def _option_names(command: str) -> set[str]:
    """All keys of a command's configuration, including keys of its groups."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from lpsel.config import configured
    from lpsel.run_config import leaves

    GlobalHydra.instance().clear()
    with configured(command):
        keys = [key.split(".") for key, _ in leaves(OmegaConf.to_container(compose(command), resolve=False))]
    return {".".join(parts[: i + 1]) for parts in keys for i in range(len(parts))}
