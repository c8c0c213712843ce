"""Human evaluation: a page with blinded pairs to vote on, and a separate key that says which answer is whose."""

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
    """What the page hides about a pair."""

    id: str
    a: Writer  # of answer A
    prompt_set: str
    category: str | None
    baseline_chars: int
    model_chars: int


@dataclass(frozen=True, slots=True)
class Key:
    """Unblinds the votes on a page."""

    page: str  # SHA-256 of the page's content, which its votes carry as well
    baseline: str
    model: str
    pairs: tuple[KeyPair, ...]  # in the order of the page's data
    equal: tuple[KeyPair, ...] = ()  # pairs with equal answers, which count as ties and are not on the page


@dataclass(frozen=True, slots=True)
class HumanJudge:
    """Writes a page to vote on instead of judging. conf/judge/human.yaml documents the options."""

    question: str = "Which answer is better?"
    seed: int = 0

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Raise a UserError without a question."""
        if not self.question.strip():
            raise UserError("judge.question", None, "is empty", "set a question such as 'Which answer is better?'")

    def write(self, pairs: Sequence[Pair], folder: Path, *, baseline: str, model: str) -> tuple[Path, Path]:
        """Write the page and its key into a folder that exists, and return their paths; only the key has the names.

        Raises:
            UserError: all answers are equal; or the folder has the key of another page, whose votes would be lost.
        """
        if all(pair.baseline == pair.model for pair in pairs):
            problem = f"all answers of {model} and {baseline} are equal"
            raise UserError("judge", "human", problem, "compare other models")
        html, key = blinded(pairs, question=self.question, seed=self.seed, baseline=baseline, model=model)
        page_path, key_path = folder / PAGE, folder / KEY
        if key_path.is_file() and read_key(key_path).page != key.page:
            hint = f"use another folder, or move {KEY} and {PAGE}"
            raise UserError(key_path, None, "is the key of another page", hint)
        write_json(key_path, asdict(key))
        write_atomically(page_path, lambda file: file.write(html.encode()))
        return page_path, key_path


def blinded(pairs: Sequence[Pair], *, question: str, seed: int, baseline: str, model: str) -> tuple[str, Key]:
    """The page as HTML, and its key.

    The page has prompts, answers, the question and the SHA-256 of these, but neither ids nor the seed, which would give
    the sides away. All texts are in a block of JSON, and the content security policy allows no script but its own.
    """
    equal = [pair for pair in pairs if pair.baseline == pair.model]
    different = [pair for pair in pairs if pair.baseline != pair.model]
    shown, secrets = [], []
    for pair, model_is_a in zip(different, np.random.default_rng(seed).integers(0, 2, len(different)), strict=True):
        a, b = pair.shown("model_first" if model_is_a else "baseline_first")
        shown.append({"prompt": pair.prompt, "a": a, "b": b})
        secrets.append(_key_pair(pair, "model" if model_is_a else "baseline"))
    # Escaped to ASCII: half a surrogate pair has no UTF-8.
    digest = hashlib.sha256(json.dumps({"question": question, "pairs": shown}, sort_keys=True).encode()).hexdigest()
    key = Key(digest, baseline, model, tuple(secrets), tuple(_key_pair(pair, "baseline") for pair in equal))
    return _html({"page": digest, "question": question, "pairs": shown}), key


def _key_pair(pair: Pair, a: Writer) -> KeyPair:
    return KeyPair(pair.id, a, pair.prompt_set, pair.category, len(pair.baseline), len(pair.model))


def _html(data: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("lpsel.judging", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    assets = {}
    for name, suffix in (("script", "js"), ("style", "css")):
        text = (files("lpsel.judging") / "templates" / f"annotate.{suffix}").read_text(encoding="utf-8")
        assets[name] = Markup(text)
        # As a content security policy allows an inline script or style.
        assets[f"{name}_hash"] = Markup(base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())
    return environment.get_template("annotate.html.j2").render(data=data, **assets)


def read_key(path: Path) -> Key:
    """The key that `HumanJudge.write` wrote; a UserError if the file cannot be read or is not a key."""
    hint = f"give the {KEY} next to the page"
    try:
        value = read_json(path)
        pairs, equal = (tuple(KeyPair(**pair) for pair in value[kind]) for kind in ("pairs", "equal"))
        return Key(value["page"], value["baseline"], value["model"], pairs, equal)
    except OSError as error:
        raise UserError("--key", path, f"cannot be read ({error.strerror})", hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("--key", path, "is not the key of a page", hint) from error
