"""Writes docs/reference/commands.md: the commands with their options, from their own parsers and help texts.

    python docs/commands_page.py

tests/unit/test_docs.py fails where the page differs from the commands.
"""

import argparse
import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lpsel.cli import FLAG_COMMANDS, HYDRA_COMMANDS
from lpsel.commands.arguments import OneLineParser
from lpsel.config import config_dir

PAGE = Path(__file__).parent / "reference" / "commands.md"
INTRO = """# Commands

The commands of lpsel with their options; values in parentheses are defaults. In a checkout, `python train.py`,
`python select.py` and `python evaluate.py` run the first three commands without installation. Every command has
`--help`. A command that writes files prints their path as its last line.

`train`, `select` and `evaluate` take `OPTION=VALUE`. Their main options are below; [configuration](options.md) explains
more, and `--cfg job` prints all. `-m` runs [a sweep](../guides/sweeps.md) over values separated by commas. The other
commands take paths and flags.

| exit status | meaning |
|---|---|
| 0 | success |
| 1 | a failure that you cannot fix in the command, such as a lost rank |
| 2 | an error that you can fix; the message is one line |
| 128 + the signal's number | the command was ended by a signal |
"""


def page() -> str:
    parts = [INTRO]
    for name, (what, example) in HYDRA_COMMANDS.items():
        parts.append(_section(name, what, example, _main_options(name)))
    for name, (what, example) in FLAG_COMMANDS.items():
        parts.append(_section(name, what, example, _arguments(parser_of(name))))
    return "\n".join(parts)


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command with flags: that of its `main`, which starts by parsing its arguments."""
    parsers: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser, *_: Any) -> None:
        parsers.append(parser)
        raise StopIteration

    parse = {"parse_args": keep, "parse_intermixed_args": keep}
    with patch.multiple(OneLineParser, **parse), suppress(StopIteration):
        import_module(f"lpsel.commands.{command}").main([])
    return parsers[0]


def _section(name: str, what: str, example: str, options: list[tuple[str, str]]) -> str:
    what = what[0].upper() + what[1:] + ("" if what.endswith("?") else ".")
    rows = "\n".join(f"| `{option}` | {text} |" for option, text in options)
    return (
        f"## lpsel {name}\n{what}\n\n```bash\nlpsel {name} {example}\n```\n\n| option | meaning |\n|---|---|\n{rows}\n"
    )


def _main_options(command: str) -> list[tuple[str, str]]:
    """The options that `lpsel COMMAND --help` lists, from its help text in conf."""
    text = (config_dir() / f"{command}.yaml").read_text()
    return re.findall(r"^ {8}([a-z_.]+=\S+) +(.+)$", text, re.MULTILINE)


def _arguments(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    shown = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings)
        value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
        several = "..." if action.nargs in ("+", "*") else ""
        shown.append((f"{name} {value}".strip() + several, (action.help or "").replace("|", "\\|")))
    return shown


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
