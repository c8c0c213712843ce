"""Answers of a model to prompts: the kept ones, and new ones where there are none yet."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpsel.data.dataset import Example, Turn
from lpsel.generation.openai_client import Endpoint, conversation
from lpsel.generation.prompt import Prompt
from lpsel.generation.sampling import Generation, Sampling
from lpsel.generation.store import KeptAnswers
from lpsel.model.device import free_memory
from lpsel.model.fingerprint import model_fingerprint
from lpsel.model.load import load_config, load_model, load_tokenizer, locate
from lpsel.model.spec import ModelSpec
from lpsel.storage import digest

if TYPE_CHECKING:
    import torch

    from lpsel.data.templates import Rendered


@dataclass(frozen=True)
class _Local:
    """A model on this machine as far as its tokenizer tells."""

    path: str
    tokenizer: Any
    prompts: "list[Rendered]"


def check(
    model: ModelSpec | Endpoint,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    cache_dir: Path,
    dtype: "torch.dtype",
) -> int:
    """Look for what can be wrong before any model is loaded or asked, and count the prompts without a kept answer.

    An endpoint all of whose answers are kept is left alone.

    Raises:
        UserError: a model that is not there, a context without room for a prompt, a template that does not fit, a
            server that cannot be reached or does not take the key.
    """
    if isinstance(model, Endpoint):
        known = _kept_of_endpoint(model, sampling, cache_dir).read()
        missing = sum(digest(conversation(prompt)) not in known for prompt in prompts)
        if missing:
            model.check()
        return missing
    local = _prepare(model, prompts, sampling, cache_dir)
    known = _kept_of_local(model, local, sampling, cache_dir, dtype).read()
    return sum(key not in known for key in _keys(local))


def answers(
    model: ModelSpec | Endpoint,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    cache_dir: Path,
    device: "torch.device",
    dtype: "torch.dtype",
    batch_tokens: int,
) -> tuple[list[Generation], dict[str, Any]]:
    """What a model answers to every prompt. Nothing is generated that was generated before.

    Answers are kept under cache_dir/generations by the model's weights and tokenizer (or an endpoint's address and
    model), the settings and precision, and the prompt as the model gets it. Of several processes that ask the
    same model with the same settings, one generates and the others wait for it.

    Args:
        model: a model on this machine, whose template makes a prompt a text; or an endpoint, which gets the turns.
        prompts: in any order.
        sampling: how tokens are chosen, and how many at most.
        cache_dir: for answers and hashes.
        device, dtype: of a model on this machine. Other devices round differently; answers are shared all the same.
        batch_tokens: largest batch, in tokens with padding.

    Returns:
        A generation for every prompt, in their order; and figures: `name`, `model`, `prompts`, how many were `reused`
        and `generated`, `prompts_cut`, `answers_cut`, `answers_empty`, `generated_tokens` of all answers (None where
        an endpoint does not say), `seconds` spent generating.

    Raises:
        UserError: what `check` raises, a model that cannot be loaded, a server that refuses. What is done is kept.
    """
    if isinstance(model, Endpoint):
        kept = _kept_of_endpoint(model, sampling, cache_dir)
        asked = [conversation(prompt) for prompt in prompts]
        where = f"{model.model}@{model.base_url}"

        def write(rows: list[int], keep: Callable[[dict[int, Generation]], None]) -> None:
            model.complete([asked[i] for i in rows], sampling, lambda place, answer: keep({place: answer}))

        keys = [digest(messages) for messages in asked]
    else:
        local = _prepare(model, prompts, sampling, cache_dir)
        kept = _kept_of_local(model, local, sampling, cache_dir, dtype)
        where = local.path

        def write(rows: list[int], keep: Callable[[dict[int, Generation]], None]) -> None:
            from lpsel.generation.generate import generate

            texts, title = [local.prompts[i] for i in rows], f"Answers, {model.name}"
            loaded = load_model(model, local.path, dtype).to(device)
            generate(loaded, local.tokenizer, texts, sampling, batch_tokens=batch_tokens, title=title, keep=keep)
            del loaded
            free_memory()

        keys = _keys(local)

    started = time.perf_counter()
    with kept.mine():
        known = kept.read()
        reused = sum(key in known for key in keys)
        rows = list({key: i for i, key in enumerate(keys) if key not in known}.values())  # equal prompts once

        def keep(done: dict[int, Generation]) -> None:
            new = {keys[rows[place]]: answer for place, answer in done.items()}
            kept.append(new)
            known.update(new)

        if rows:
            write(rows, keep)
    return [known[key] for key in keys], {
        "name": model.name,
        "model": where,
        "prompts": len(keys),
        "reused": reused,
        "generated": len(rows),
        **_figures([known[key] for key in keys]),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _prepare(spec: ModelSpec, prompts: Sequence[Prompt], sampling: Sampling, cache_dir: Path) -> _Local:
    from lpsel.data.templates import render_prompt
    from lpsel.generation.generate import prompt_room

    path = locate(spec, cache_dir)
    prompt_room(load_config(spec, path), sampling.max_new_tokens)
    tokenizer = load_tokenizer(spec, path)
    return _Local(path, tokenizer, [render_prompt(_open(p.example), spec.template, tokenizer) for p in prompts])


def _keys(local: _Local) -> list[str]:
    return [digest([prompt.text, prompt.add_special_tokens]) for prompt in local.prompts]


def _open(example: Example) -> Example:
    """With the answer to come as its last turn: `render_prompt` takes what stands before the last answer."""
    return Example((*example.turns, Turn("assistant", "")), example.input)


def _kept_of_local(
    spec: ModelSpec, local: _Local, sampling: Sampling, cache_dir: Path, dtype: "torch.dtype"
) -> KeptAnswers:
    return KeptAnswers(
        cache_dir,
        {
            "model": model_fingerprint(local.path, spec.revision, cache_dir),
            "dtype": str(dtype).removeprefix("torch."),
            **sampling.settings(),
        },
    )


def _kept_of_endpoint(endpoint: Endpoint, sampling: Sampling, cache_dir: Path) -> KeptAnswers:
    return KeptAnswers(cache_dir, {**endpoint.identity(), **sampling.settings()})


def _figures(generations: list[Generation]) -> dict[str, Any]:
    tokens = [generation.tokens for generation in generations]
    return {
        "prompts_cut": sum(generation.prompt_cut > 0 for generation in generations),
        "answers_cut": sum(not generation.stopped for generation in generations),
        "answers_empty": sum(not generation.text.strip() for generation in generations),
        "generated_tokens": None if None in tokens else sum(count or 0 for count in tokens),
    }
