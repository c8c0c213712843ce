"""People as judges: a page of blinded pairs to vote on, and apart from it the key that says which answer is whose."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lpsel.errors import UserError
from lpsel.generation.prompts import Prompt
from lpsel.judging.judge import Pair
from lpsel.storage import read_json, write_atomically, write_json

PAGE = "annotate.html"
KEY = "key.json"

Writer = Literal["baseline", "model"]


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What the page does not tell of a pair.

    Attributes:
        id, prompt_set, category: as the pair's.
        a: whose answer is answer A.
        baseline_chars, model_chars: lengths of the answers.
    """

    id: str
    a: Writer
    prompt_set: str
    category: str | None
    baseline_chars: int
    model_chars: int


@dataclass(frozen=True, slots=True)
class Key:
    """Unblinds the votes on a page.

    Attributes:
        page: SHA-256 of what the page shows; its votes carry it too.
        baseline, model: names of the two that wrote the answers.
        pairs: in the order of the page's data.
        equal: those whose answers are the same: ties that nobody is asked about.
    """

    page: str
    baseline: str
    model: str
    pairs: tuple[KeyPair, ...]
    equal: tuple[KeyPair, ...] = ()


@dataclass(frozen=True, slots=True)
class HumanJudge:
    """Asks people, who answer later: it writes a page in place of judgements.

    Attributes:
        question: what is asked of every pair, the page's title.
        seed: of which answer stands on which side.
    """

    question: str = "Which answer is better?"
    seed: int = 0

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Raise UserError where there is no question."""
        if not self.question.strip():
            raise UserError("judge.question: is empty; say what people shall judge, as in 'Which answer is better?'.")

    def write(self, pairs: Sequence[Pair], folder: Path, *, baseline: str, model: str) -> tuple[Path, Path]:
        """Write the page and its key into `folder`, and return their paths.

        Args:
            pairs: each with an id of its own, at least one with answers that differ.
            baseline, model: names of those that wrote the answers; the key has them, the page does not.

        Raises:
            UserError: all answers are equal; the folder has the key of another page, without which votes on that page
                would be worth nothing.
        """
        if all(pair.baseline == pair.model for pair in pairs):
            raise UserError(f"judge=human: {model} and {baseline} gave equal answers throughout; compare other models.")
        html, key = blinded(pairs, question=self.question, seed=self.seed, baseline=baseline, model=model)
        page_path, key_path = folder / PAGE, folder / KEY
        if key_path.is_file() and read_key(key_path).page != key.page:
            raise UserError(
                f"{key_path}: is the key of another page; give another folder, or move {KEY} and {PAGE} away."
            )
        write_json(key_path, asdict(key))
        write_atomically(page_path, lambda file: file.write(html.encode()))
        return page_path, key_path


def blinded(pairs: Sequence[Pair], *, question: str, seed: int, baseline: str, model: str) -> tuple[str, Key]:
    """The page as HTML, and its key.

    The page has prompts, answers, the question and the SHA-256 of these, no more: neither ids nor the seed, from which
    sides could be worked out. Every text stands in a block of JSON, and the page's policy allows no script but its own.
    """
    equal = [pair for pair in pairs if pair.baseline == pair.model]
    pairs = [pair for pair in pairs if pair.baseline != pair.model]
    model_is_a = np.random.default_rng(seed).integers(0, 2, len(pairs)).astype(bool)
    shown = [
        {"prompt": pair.prompt, "a": pair.model, "b": pair.baseline}
        if model_first
        else {"prompt": pair.prompt, "a": pair.baseline, "b": pair.model}
        for pair, model_first in zip(pairs, model_is_a, strict=True)
    ]
    # Escaped to ASCII: half a surrogate pair has no UTF-8.
    digest = hashlib.sha256(json.dumps({"question": question, "pairs": shown}, sort_keys=True).encode()).hexdigest()
    key = Key(
        digest,
        baseline,
        model,
        tuple(_key_pair(pair, "model" if first else "baseline") for pair, first in zip(pairs, model_is_a, strict=True)),
        tuple(_key_pair(pair, "baseline") for pair in equal),
    )
    return _html({"page": digest, "question": question, "pairs": shown}), key


def _key_pair(pair: Pair, a: Writer) -> KeyPair:
    return KeyPair(pair.id, a, pair.prompt_set, pair.category, len(pair.baseline), len(pair.model))


def _html(data: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = files("lpsel.judging") / "templates"
    script, style = ((templates / f"annotate.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    environment = Environment(
        loader=PackageLoader("lpsel.judging", "templates"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("annotate.html.j2").render(
        data=data,
        script=Markup(script),
        style=Markup(style),
        script_hash=_source_hash(script),
        style_hash=_source_hash(style),
    )


def _source_hash(text: str) -> str:
    """As a content security policy names an inline script or style it allows."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def read_key(path: Path) -> Key:
    """The key that `HumanJudge.write` wrote.

    Raises:
        UserError: no such file, or not a key.
    """
    try:
        value = read_json(path)
        pairs, equal = (tuple(KeyPair(**pair) for pair in value[kind]) for kind in ("pairs", "equal"))
        return Key(value["page"], value["baseline"], value["model"], pairs, equal)
    except OSError as error:
        raise UserError(f"--key {path}: cannot be read ({error.strerror}); give the {KEY} beside the page.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--key {path}: is not the key of a page; give the {KEY} beside the page.") from error
