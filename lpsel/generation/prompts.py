"""Load prompt sets from a folder, conf/prompt_set, a file, a web address or the Hub."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.request import urlopen

from omegaconf import DictConfig, OmegaConf

from lpsel.config import build, config_dir
from lpsel.data.chat_template import with_input
from lpsel.data.column_forms import FORMS, PROMPT_FORMS, choose_form, forms_of, is_conversation, to_example
from lpsel.data.content_ids import listed
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.example import Example
from lpsel.data.formats import ENDINGS, reader_of
from lpsel.errors import UnusableRow, UserError, check_int, first_line, skipped
from lpsel.storage import utf8, write_atomically

DOWNLOAD_TIMEOUT = 60  # seconds
MAX_DOWNLOAD = 256 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of an evaluation."""

    id: str  # unique within the evaluation
    prompt_set: str
    example: Example  # the conversation up to the answer
    category: str | None = None
    reference: str | None = None  # reference answer
    conversation: bool = False  # whether the row is a list of turns, see `resolve_template`

    @property
    def text(self) -> str:
        """The prompt as shown to judges: the instruction with the input below it, or all turns of a conversation.

        If the conversation has earlier answers, every turn begins with the role of its speaker.
        """
        turns = with_input(self.example)
        names_shown = any(turn.role == "assistant" for turn in turns)
        return "\n\n".join(f"{turn.role.title()}: {turn.content}" if names_shown else turn.content for turn in turns)


@dataclass(frozen=True)
class PromptSet:
    """The location and columns of a prompt set.

    Columns can be nested: `instances.0.input` is the input of the first instance. `columns` maps our fields
    (instruction and input, prompt, or messages) to columns, and is only needed if their names match no known form. An
    answer is not required. Without a reference column, an answer in the row is the reference.
    """

    name: str
    path: str  # local file, web address of a file, or Hub id
    split: str = "train"  # split of a Hub dataset
    revision: str | None = None  # branch, tag or commit of a Hub dataset
    columns: dict[str, str] = field(default_factory=dict)
    id: str = "id"  # the column, as in the next two fields, used in rows that have it
    category: str = "category"
    reference: str = "reference_output"


def load_prompts(
    names: str | Sequence[str],
    limit: int | None = None,
    *,
    cache_dir: Path,
    folder: Path | None = None,
    bad_rows: str = "error",
) -> tuple[list[Prompt], Counter[str]]:
    """Load the prompts of one or several sets, one set after the other, and count the skipped rows by kind.

    The id of a prompt is taken from its set, or is SET/ROW, with rows counted from 0. If prompts of different sets have
    the same id, they are prefixed with the name of the set.

    Args:
        names: for each set, NAME of a data file in `folder` or conf/prompt_set, a file, a web address or a Hub id.
        limit: maximum number of prompts per set.
        cache_dir: folder for downloaded files.
        folder: folder of prompt files, which is searched first.
        bad_rows: error, or skip for unusable rows.

    Raises:
        UserError: a set, file or Hub dataset does not exist; a set has no prompts or duplicate ids; or several sets
            have the same name.
        UnusableRow: with bad_rows=error, a row is unusable or has no text.
    """
    if limit is not None:
        check_int("evaluator.limit", limit, 1, hint="set null to use all prompts")
    unusable = Counter[str]()
    sets = find_sets(names, folder)
    prompts = [prompt for prompt_set in sets for prompt in _read(prompt_set, limit, cache_dir, bad_rows, unusable)]
    ids = Counter(prompt.id for prompt in prompts)
    prompts = [replace(p, id=f"{p.prompt_set}/{p.id}") if ids[p.id] > 1 else p for p in prompts]
    for name, count in Counter(prompt.id for prompt in prompts).items():
        if count > 1:
            raise UserError("prompts", None, f"the id {name} is not unique", "give every prompt in a set its own id")
    return prompts, unusable


def find_sets(names: str | Sequence[str], folder: Path | None = None) -> list[PromptSet]:
    """Find the prompt sets with these names, as for `load_prompts`, without reading them.

    Raises:
        UserError: a set or local file does not exist, or several sets have the same name.
    """
    chosen = list(names) if isinstance(names, list | tuple) else [names]
    if not chosen:
        raise UserError("prompts", "[]", "has no prompt set", "set prompts=NAME_OR_FILE")
    if folder is not None and not folder.is_dir():
        raise UserError("prompts_dir", folder, "no such folder", "set a folder with prompt files, or null")
    sets = [_find(str(name), folder) for name in chosen]
    for name, count in Counter(prompt_set.name for prompt_set in sets).items():
        if count > 1:
            raise UserError("prompts", None, f"{count} sets are named {name}", "list every set once, and rename files")
    return sets


def known_sets(folder: Path | None = None) -> list[str]:
    """Return the names of the prompt sets in `folder` and conf/prompt_set."""
    return sorted({*_files(folder), *(file.stem for file in (config_dir() / "prompt_set").glob("*.yaml"))})


def _files(folder: Path | None) -> dict[str, Path]:
    """Return the prompt files in a folder by set name; the first file if several have the same name."""
    files = sorted(folder.iterdir(), reverse=True) if folder is not None else []
    return {_name(str(file)): file for file in files if reader_of(file.name)}


def _name(path: str) -> str:
    """Return the set name for a file, web address or Hub id."""
    name = _file_name(path) if _is_url(path) else Path(path).name
    return name.split(".")[0] if reader_of(name) else name


def _find(name: str, folder: Path | None) -> PromptSet:
    if file := _files(folder).get(name):
        return PromptSet(name, str(file))
    configured = config_dir() / "prompt_set" / f"{name}.yaml"
    if configured.is_file():
        return build(cast(DictConfig, OmegaConf.load(configured)))
    exists, readable = Path(name).expanduser().exists(), reader_of(name) is not None
    if exists and not readable:
        raise UserError("prompts", name, "unknown file extension", f"use a file that ends in {ENDINGS}")
    if not exists and readable and not _is_url(name):
        raise UserError("prompts", name, "no such file", "check the path")
    if not exists and "/" not in name:
        hint = f"set one of {', '.join(known_sets(folder))}, a file or a Hub id"
        raise UserError("prompts", name, "no such prompt set", hint)
    return PromptSet(_name(name), name)


def _read(
    prompt_set: PromptSet, limit: int | None, cache_dir: Path, bad_rows: str, unusable: Counter[str]
) -> list[Prompt]:
    """Read the prompts of a set, and add the number of skipped rows by kind to `unusable`."""
    path = str(_download(prompt_set.path, cache_dir)) if _is_url(prompt_set.path) else prompt_set.path
    location = f"prompts={prompt_set.name}"
    try:
        spec = DatasetSpec(prompt_set.name, path, prompt_set.split, prompt_set.revision, limit=limit)
        rows = list(Source(spec).raw_rows())
    except UserError as error:
        if not Path(prompt_set.path).expanduser().is_file():
            error.hint = error.hint or "check the path"
            error.hint += f", or set prompts_dir to a folder with {prompt_set.name}.jsonl"
        raise error.at(location) from None
    if not rows:
        raise UserError("prompts", prompt_set.name, f"{prompt_set.path} has no prompts", "choose another set")
    prompts, kinds = [], Counter[str]()
    for number, raw in enumerate(rows):
        try:
            prompts.append(_prompt(prompt_set, number, raw))
        except UnusableRow as error:
            at = location if error is raw else f"{location}, row {number}"
            kinds[skipped(error, at, bad_rows)] += 1
    if not prompts:
        problem = f"none of {len(rows):,} prompts can be used: {listed(kinds)}"
        raise UserError("prompts", prompt_set.name, problem, "convert them, or use other prompts")
    unusable.update(kinds)
    return prompts


def _prompt(prompt_set: PromptSet, number: int, raw: dict[str, Any] | UnusableRow) -> Prompt:
    if isinstance(raw, UnusableRow):
        raise raw
    row = {name: _value(raw, column) for name, column in prompt_set.columns.items()} or raw
    missing = [column for name, column in prompt_set.columns.items() if row[name] is None and name != "input"]
    if missing:
        problem, hint = f"do not include {missing[0]}", "correct columns in conf/prompt_set"
        raise UnusableRow("columns", ", ".join(raw), problem, hint, kind="a missing column")
    forms = forms_of(tuple(row), (*FORMS, *PROMPT_FORMS))
    if not forms:
        hint = "rename a column to instruction (with input), prompt or messages"
        raise UnusableRow("columns", ", ".join(row), "contain no prompt", hint, kind="an unknown form")
    form = choose_form(forms, row)
    example, answer = to_example(row, form), ""
    if example.turns and example.turns[-1].role == "assistant":
        answer = example.turns[-1].content
        example = example._replace(turns=example.turns[:-1])

    def text(column: str) -> str | None:
        value = _value(raw, column)
        return None if value is None else utf8(str(value))

    prompt = Prompt(
        id=text(prompt_set.id) or f"{prompt_set.name}/{number}",
        prompt_set=prompt_set.name,
        example=example,
        category=text(prompt_set.category),
        reference=text(prompt_set.reference) or answer or None,
        conversation=is_conversation(row, form),
    )
    if not any(turn.content.strip() for turn in with_input(example)):
        raise UnusableRow("prompt", None, "has no text", "add text or remove the row", kind="a prompt without text")
    return prompt


def _value(raw: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, which may be nested, such as `instances.0.input`; None if it does not exist."""
    if column in raw:
        return raw[column]
    value: Any = raw
    try:
        for step in column.split("."):
            value = value[int(step)] if isinstance(value, list) else value[step]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return value


def _is_url(path: str) -> bool:
    return path.startswith(("https://", "http://"))


def _file_name(url: str) -> str:
    return Path(re.split("[?#]", url)[0]).name


def _download(url: str, cache_dir: Path) -> Path:
    """Download a file once and return its path; errors omit the query of the address, which may have a signature."""
    name, shown = _file_name(url), url.partition("?")[0]
    if reader_of(name) is None:
        raise UserError("prompts", shown, "unknown file extension", f"use a file that ends in {ENDINGS}")
    file = cache_dir / "prompts" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
                content = response.read(MAX_DOWNLOAD + 1)
        # No such host, no connection, a timeout or an HTTP status; a broken response; an invalid URL.
        except (OSError, HTTPException, ValueError) as error:
            hint = "download it some other way and pass the file, or set prompts_dir to its folder"
            raise UserError("prompts", shown, f"cannot be downloaded ({first_line(error)})", hint) from error
        if len(content) > MAX_DOWNLOAD:
            hint = "download it, and pass the part that you need as a file"
            raise UserError("prompts", shown, f"has more than {MAX_DOWNLOAD >> 20} MiB", hint)
        write_atomically(file, lambda out: out.write(content))
    file.touch()  # when it was last used, for `lpsel cache`
    return file
