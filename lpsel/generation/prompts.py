"""Prompts by the name of their set: in a folder of the user's, in conf/prompt_set, a file, a web address, the Hub."""

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lpsel.config import build, config_dir
from lpsel.data.dataset import DatasetSpec, Example, Source
from lpsel.data.formats import ENDINGS, reader_of
from lpsel.errors import UserError, first_line
from lpsel.generation.prompt import Prompt
from lpsel.storage import utf8, write_atomically

# What asks -> the columns that may answer. A row without an answer is given an empty one, to be of a form that
# `Source` knows.
ANSWERS = {"instruction": ("output", "response"), "prompt": ("completion",)}
SECONDS = 60  # to wait for a server that hands out prompt files


@dataclass(frozen=True)
class PromptSet:
    """Where the prompts of a set are.

    A column may lie inside another: `instances.0.input` is the input of the first of the instances.

    Attributes:
        name: of the set.
        path: local file, address of a file (https://...), or Hub id.
        split: of a Hub data set.
        columns: our field -> the set's column: instruction (and input), prompt, or messages. None where the columns
            have the names of a known form, an answer aside.
        id, category, reference: columns, used where a row has them. Without a reference column, an answer in the row
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
    """The prompts of one or several sets, one set behind the other.

    A prompt's id is the one that its set gives, else SET/ROW with rows counted from 0. Where two prompts would have
    the same id, the set's name and a slash stand before both.

    Args:
        names: of sets: FOLDER/NAME.jsonl (or another kind of data file) in `folder`, NAME in conf/prompt_set, else a
            file, a file's address or a Hub id.
        limit: at most so many of every set, its first.
        cache_dir: files from the web are kept in it.
        folder: of prompt files, looked into first.

    Raises:
        UserError: no such set, file or Hub data set, a set without prompts or named twice, a prompt without text, an
            id that comes twice in a set.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    if not chosen:
        raise UserError("prompts=[]: no prompts; give prompts=NAME_OR_FILE.")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise UserError(f"limit={limit}: must be at least 1 prompt of every set, or null for all.")
    if folder is not None and not folder.expanduser().is_dir():
        raise UserError(f"prompts_dir={folder}: no such folder; give a folder of prompt files, or null.")
    sets = [_named(str(name), folder) for name in chosen]
    for name, count in Counter(a_set.name for a_set in sets).items():
        if count > 1:
            raise UserError(f"prompts: {count} sets are called {name}; name each once, and give files distinct names.")
    return _distinct([prompt for a_set in sets for prompt in _read(a_set, limit, cache_dir)])


def known_sets(folder: Path | None = None) -> list[str]:
    """The names of the sets in `folder` and in conf/prompt_set."""
    files = list(folder.expanduser().iterdir()) if folder is not None else []
    own = {file.name.split(".")[0] for file in files if reader_of(file.name)}
    return sorted(own | {file.stem for file in (config_dir() / "prompt_set").glob("*.yaml")})


def _named(name: str, folder: Path | None) -> PromptSet:
    if folder is not None and "/" not in name:
        here = folder.expanduser().glob(f"{glob.escape(name)}.*")
        file = next((file for file in sorted(here) if reader_of(file.name)), None)
        if file is not None:
            return PromptSet(name, str(file))
    configured = config_dir() / "prompt_set" / f"{name}.yaml"
    if configured.is_file():
        from omegaconf import DictConfig, OmegaConf

        node = OmegaConf.load(configured)
        assert isinstance(node, DictConfig)
        return build(node)
    path = Path(name).expanduser()
    is_address = _is_address(name)
    if reader_of(name) is not None and not is_address and not path.is_file():
        raise UserError(f"prompts={name}: no such file. Check the name and the folder you start from.")
    if path.exists() and reader_of(name) is None:
        raise UserError(f"prompts={name}: must be a file that ends in {ENDINGS}.")
    if "/" not in name and not path.is_file():
        raise UserError(
            f"prompts={name}: no such prompt set; give one of {', '.join(known_sets(folder))}, a file or a Hub id."
        )
    stem = Path(urlsplit(name).path if is_address else name).name
    return PromptSet(stem.split(".")[0] if reader_of(name) else stem, name)


def _read(a_set: PromptSet, limit: int | None, cache_dir: Path) -> Iterator[Prompt]:
    path = str(_fetched(a_set.path, cache_dir)) if _is_address(a_set.path) else a_set.path
    source = Source(DatasetSpec(a_set.name, path, split=a_set.split, limit=limit))
    number = -1
    for number, raw in _rows(source, a_set):
        try:
            prompt = _prompt(a_set, number, raw, source)
        except UserError as error:
            raise UserError(f"prompts={a_set.name}, row {number}: {error}") from None
        if not prompt.text.strip():
            raise UserError(f"prompts={a_set.name}, row {number}: a prompt without text; mend it or leave it out.")
        yield prompt
    if number < 0:
        raise UserError(f"prompts={a_set.name}: {a_set.path} has no prompts; give a set that has some.")


def _rows(source: Source, a_set: PromptSet) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        yield from enumerate(source.raw_rows())
    except UserError as error:
        at_hand = "" if Path(a_set.path).is_file() else f" Or give a folder with {a_set.name}.jsonl as prompts_dir."
        raise UserError(f"prompts={a_set.name}: {error}{at_hand}") from None


def _prompt(a_set: PromptSet, number: int, raw: dict[str, Any], source: Source) -> Prompt:
    row = raw if not a_set.columns else {}
    for name, column in a_set.columns.items():
        row[name] = _inside(raw, column)
        if row[name] is None and name != "input":
            raise UserError(f"no column {column}, found {', '.join(raw)}.")
    if not row.keys() & {*ANSWERS, "messages", "conversations"}:
        raise UserError(
            f"columns {', '.join(row)}: a prompt needs instruction (and input), prompt or messages; rename its column."
        )
    question = next((column for column in ANSWERS if column in row), None)
    if question is not None and not row.keys() & set(ANSWERS[question]):
        row = {**row, ANSWERS[question][0]: ""}
    example = source.example(row)
    given, answer = _inside(raw, a_set.id), ""
    if example.turns and example.turns[-1].role == "assistant":
        answer = example.turns[-1].content
        example = Example(example.turns[:-1], example.input)
    return Prompt(
        id=f"{a_set.name}/{number}" if given in (None, "") else utf8(str(given)),
        prompt_set=a_set.name,
        example=example,
        category=_text(_inside(raw, a_set.category)),
        reference=_text(_inside(raw, a_set.reference)) or answer or None,
    )


def _inside(raw: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a place in it such as `instances.0.input`; None where there is none."""
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
    from dataclasses import replace

    def counted(some: list[Prompt]) -> Counter[str]:
        return Counter(prompt.id for prompt in some)

    twice = counted(prompts)
    told_apart = [
        replace(prompt, id=f"{prompt.prompt_set}/{prompt.id}") if twice[prompt.id] > 1 else prompt for prompt in prompts
    ]
    again = next((name for name, count in counted(told_apart).items() if count > 1), None)
    if again is not None:
        raise UserError(f"prompts: the id {again} comes twice; give every prompt of a set an id of its own, or none.")
    return told_apart


def _is_address(path: str) -> bool:
    return path.startswith(("https://", "http://"))


def _fetched(address: str, cache_dir: Path) -> Path:
    """The file behind a web address, fetched once."""
    from urllib.request import urlopen

    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    name = Path(urlsplit(address).path).name
    if reader_of(name) is None:
        raise UserError(f"prompts={address}: must be the address of a file that ends in {ENDINGS}.")
    kept = cache_dir / "prompts" / f"{key}-{name}"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            with urlopen(address, timeout=SECONDS) as answer:
                content = answer.read()
        except OSError as error:  # of a name, a connection, a time-out, or an HTTP status
            raise UserError(
                f"prompts={address}: cannot be fetched ({first_line(error)}); fetch it by other means and give the "
                "file, or a folder with it as prompts_dir."
            ) from error
        write_atomically(kept, lambda file: file.write(content))
    return kept
