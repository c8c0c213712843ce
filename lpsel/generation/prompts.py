"""Prompt sets, by name: from a folder, conf/prompt_set, a file, a web address or the Hub."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from omegaconf import DictConfig, OmegaConf

from lpsel.config import build, config_dir
from lpsel.data.column_forms import PROMPT_FORMS, Example, find_form, to_example
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.formats import ENDINGS, reader_of
from lpsel.errors import UserError, check_int, first_line
from lpsel.storage import utf8, write_atomically

DOWNLOAD_TIMEOUT = 60  # seconds


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of an evaluation."""

    id: str  # unique in the evaluation
    prompt_set: str
    example: Example  # the conversation up to the answer
    category: str | None = None
    reference: str | None = None  # answer

    @property
    def text(self) -> str:
        """As shown to judges: the instruction with the input below it, or all turns of a conversation."""
        parts = [turn.content for turn in self.example.turns]
        return "\n\n".join([*parts, self.example.input] if self.example.input else parts)


@dataclass(frozen=True)
class PromptSet:
    """Where the prompts of a set are.

    Columns can be nested: `instances.0.input` is the input of the first of the instances.

    Attributes:
        name: of the set.
        path: local file, web address of a file, or Hub id.
        split: of a Hub dataset.
        columns: our field -> the set's column: instruction (and input), prompt, or messages. Empty if the columns have
            the names of a known form; an answer is not needed.
        id, category, reference: columns, used in rows that have them. Without a reference column, an answer in the row
            is the reference.
    """

    name: str
    path: str
    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)
    id: str = "id"
    category: str = "category"
    reference: str = "reference_output"


def load_prompts(
    names: str | Sequence[str], limit: int | None = None, *, cache_dir: Path, folder: Path | None = None
) -> list[Prompt]:
    """The prompts of one or several sets, set by set.

    The id of a prompt is the one in its set, or SET/ROW, where rows count from 0. Prompts of different sets with the
    same id get the name of their set in front.

    Args:
        names: of sets: FOLDER/NAME.jsonl (or another kind of data file), NAME in conf/prompt_set, a file, a web
            address or a Hub id.
        limit: take at most this many prompts of every set.
        cache_dir: for downloaded files.
        folder: of prompt files, searched first.

    Raises:
        UserError: no such set, file or Hub dataset, a set without prompts or with duplicate ids, sets with the same
            name, a prompt without text.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    if not chosen:
        raise UserError("prompts", "[]", "has no prompt set", "set prompts=NAME_OR_FILE")
    if limit is not None:
        check_int("evaluator.limit", limit, 1, hint="set null to use all prompts")
    if folder is not None and not folder.expanduser().is_dir():
        raise UserError("prompts_dir", folder, "no such folder", "set a folder with prompt files, or null")
    sets = [_find(str(name), folder) for name in chosen]
    for name, count in Counter(prompt_set.name for prompt_set in sets).items():
        if count > 1:
            raise UserError("prompts", None, f"{count} sets are named {name}", "give every set once and rename files")
    return _distinct([prompt for prompt_set in sets for prompt in _read(prompt_set, limit, cache_dir)])


def known_sets(folder: Path | None = None) -> list[str]:
    """The names of the sets in `folder` and in conf/prompt_set."""
    files = list(folder.expanduser().iterdir()) if folder is not None else []
    names = {file.name.split(".")[0] for file in files if reader_of(file.name)}
    return sorted(names | {file.stem for file in (config_dir() / "prompt_set").glob("*.yaml")})


def _find(name: str, folder: Path | None) -> PromptSet:
    for file in sorted(folder.expanduser().iterdir()) if folder is not None else ():
        if reader_of(file.name) and file.name.split(".")[0] == name:
            return PromptSet(name, str(file))
    configured = config_dir() / "prompt_set" / f"{name}.yaml"
    if configured.is_file():
        node = OmegaConf.load(configured)
        assert isinstance(node, DictConfig)
        return build(node)
    path = Path(name).expanduser()
    if path.exists() and reader_of(name) is None:
        raise UserError("prompts", name, "unknown kind of file", f"name a file that ends in {ENDINGS}")
    if not path.exists() and not _is_url(name):
        if reader_of(name) is not None:
            raise UserError("prompts", name, "no such file", "check the path")
        if "/" not in name:
            hint = f"set one of {', '.join(known_sets(folder))}, a file or a Hub id"
            raise UserError("prompts", name, "no such prompt set", hint)
    file_name = Path(urlsplit(name).path if _is_url(name) else name).name
    return PromptSet(file_name.split(".")[0] if reader_of(file_name) else file_name, name)


def _read(prompt_set: PromptSet, limit: int | None, cache_dir: Path) -> Iterator[Prompt]:
    path = str(_download(prompt_set.path, cache_dir)) if _is_url(prompt_set.path) else prompt_set.path
    source = Source(DatasetSpec(prompt_set.name, path, split=prompt_set.split, limit=limit))
    number = -1
    for number, raw in _rows(source, prompt_set):
        try:
            prompt = _prompt(prompt_set, number, raw)
            if not prompt.text.strip():
                raise UserError("prompt", None, "has no text", "add text or remove the row")
        except UserError as error:
            raise error.at(f"prompts={prompt_set.name}, row {number}") from None
        yield prompt
    if number < 0:
        raise UserError("prompts", prompt_set.name, f"{prompt_set.path} has no prompts", "choose another set")


def _rows(source: Source, prompt_set: PromptSet) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        yield from enumerate(source.raw_rows())
    except UserError as error:
        if Path(prompt_set.path).expanduser().is_file():
            raise error.at(f"prompts={prompt_set.name}") from None
        hint = f"{error.hint or 'check the path'}, or set prompts_dir to a folder with {prompt_set.name}.jsonl"
        raise UserError(error.name, error.value, error.problem, hint, f"prompts={prompt_set.name}") from None


def _prompt(prompt_set: PromptSet, number: int, raw: dict[str, Any]) -> Prompt:
    row = {name: _value(raw, column) for name, column in prompt_set.columns.items()} or raw
    missing = [column for name, column in prompt_set.columns.items() if row[name] is None and name != "input"]
    if missing:
        raise UserError("columns", ", ".join(raw), f"do not include {missing[0]}", "correct columns in conf/prompt_set")
    form = find_form(row, PROMPT_FORMS)
    if form is None:
        hint = "rename a column to instruction (with input), prompt or messages"
        raise UserError("columns", ", ".join(row), "hold no prompt", hint)
    example = to_example(row, form)
    answer = ""
    if example.turns and example.turns[-1].role == "assistant":
        answer = example.turns[-1].content
        example = Example(example.turns[:-1], example.input)
    return Prompt(
        id=_text(_value(raw, prompt_set.id)) or f"{prompt_set.name}/{number}",
        prompt_set=prompt_set.name,
        example=example,
        category=_text(_value(raw, prompt_set.category)),
        reference=_text(_value(raw, prompt_set.reference)) or answer or None,
    )


def _value(raw: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of one nested in it such as `instances.0.input`; None where there is none."""
    if column in raw:
        return raw[column]
    value: Any = raw
    for step in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _text(value: Any) -> str | None:
    return None if value is None else utf8(str(value))


def _distinct(prompts: list[Prompt]) -> list[Prompt]:
    count = Counter(prompt.id for prompt in prompts)
    prompts = [replace(p, id=f"{p.prompt_set}/{p.id}") if count[p.id] > 1 else p for p in prompts]
    for name, again in Counter(prompt.id for prompt in prompts).items():
        if again > 1:
            raise UserError("prompts", None, f"the id {name} is not unique", "give every prompt in a set its own id")
    return prompts


def _is_url(path: str) -> bool:
    return path.startswith(("https://", "http://"))


def _download(url: str, cache_dir: Path) -> Path:
    """The file at a web address, downloaded once."""
    name = Path(urlsplit(url).path).name
    if reader_of(name) is None:
        raise UserError("prompts", url, "unknown kind of file", f"name a file that ends in {ENDINGS}")
    file = cache_dir / "prompts" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
                content = response.read()
        except OSError as error:  # no such host, no connection, a timeout or an HTTP status
            hint = "download it some other way and pass the file, or set prompts_dir to its folder"
            raise UserError("prompts", url, f"cannot be downloaded ({first_line(error)})", hint) from error
        write_atomically(file, lambda out: out.write(content))
    return file
