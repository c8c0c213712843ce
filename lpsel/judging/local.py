"""A local judge, which prefers the answer whose letter has the higher probability as the next token."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lpsel.data.batching import padded
from lpsel.data.column_forms import Example, Turn
from lpsel.data.templates import render_prompt
from lpsel.distributed import deferred_signals, end_if_signaled
from lpsel.errors import UserError, check_int
from lpsel.generation.prompts import Prompt
from lpsel.judging.judge import (
    ORDERS,
    TOO_LONG,
    Judgement,
    Order,
    Question,
    check_orders,
    higher_score_wins,
    preference_of,
)
from lpsel.judging.prompt import fill, load_prompt
from lpsel.model.copies import Copies, devices_for
from lpsel.model.device import device_of, resolve_precision
from lpsel.model.fingerprint import model_fingerprint
from lpsel.model.load import load_config, load_model, load_tokenizer, locate
from lpsel.model.spec import ModelSpec

# B questions in a batch, T tokens per question (padded on the right), H hidden size, V vocabulary size

QUESTIONS_PER_GPU = 1024  # with fewer, starting another process takes longer than it saves


@dataclass
class HFJudge:
    """Compares the next-token probabilities of the letters A and B, with or without a space; generates no text.

    Both probabilities are stored in `raw`; a small sum means that the model would have generated something else.
    Questions longer than the model's context fail. conf/judge/hf.yaml documents the options.
    """

    model: ModelSpec
    cache_dir: str  # folder for tiny models
    prompt: str = "letter"
    accelerator: str = "auto"
    precision: str = "auto"
    batch_tokens: int = 16_384
    orders: Sequence[Order] = ORDERS
    text: str = field(init=False, repr=False)  # content of the prompt file

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelSpec):
            hint = "set judge.model.path=FOLDER_OR_HUB_ID"
            raise UserError("judge.model", self.model, "must have a path and a template", hint)
        check_orders(self.orders)
        check_int("judge.batch_tokens", self.batch_tokens, 1)
        self.text = load_prompt(self.prompt)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def _path(self) -> str:
        return locate(self.model, Path(self.cache_dir))

    def identity(self) -> dict[str, Any]:
        return {
            "judge": "hf",
            "model": model_fingerprint(self._path, self.model.revision),
            "template": self.model.template,
            "prompt": self.text,
            "precision": resolve_precision(self.precision, self.accelerator),
        }

    def cost(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        return None

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Check the model, its tokenizer and template, and the letter tokens, without loading weights."""
        load_config(self.model, self._path)
        tokenizer = load_tokenizer(self.model, self._path)
        self.token_ids(tokenizer, fill(self.text, "Say hello.", "Hello.", "Hi."))
        answer_tokens(tokenizer)
        device_of(self.accelerator)
        resolve_precision(self.precision, self.accelerator)

    def judge(self, questions: Sequence[Question], save: Callable[[Judgement], None]) -> None:
        tokenizer = load_tokenizer(self.model, self._path)
        letters = answer_tokens(tokenizer)
        config = load_config(self.model, self._path).get_text_config()
        context = getattr(config, "max_position_embeddings", None) or math.inf
        ids = [self.token_ids(tokenizer, fill(self.text, pair.prompt, *pair.shown(order))) for pair, order in questions]
        for (pair, order), tokens in zip(questions, ids, strict=True):
            if len(tokens) > context:
                save(Judgement(pair.id, order, None, prompt_tokens=len(tokens), failure=TOO_LONG))
        lengths = np.array([len(tokens) for tokens in ids], dtype=np.int32)
        fitting = np.flatnonzero(lengths <= context)
        if not len(fitting):
            return
        batches = padded(fitting, lengths, self.batch_tokens)
        devices = devices_for(device_of(self.accelerator), len(fitting), QUESTIONS_PER_GPU)
        precision = resolve_precision(self.precision, self.accelerator)
        with Copies(partial(_load, self.model, self._path, precision), devices) as copies, deferred_signals():
            judged = copies.map(partial(letter_probabilities, letters), ([ids[i] for i in batch] for batch in batches))
            for batch, probabilities in zip(batches, judged, strict=True):
                for i, (first, second) in zip(batch.tolist(), probabilities, strict=True):
                    pair, order = questions[i]
                    judgement = Judgement(
                        pair.id,
                        order,
                        preference_of(higher_score_wins(first, second), order),
                        raw=json.dumps({"A": first, "B": second}),
                        prompt_tokens=len(ids[i]),
                        completion_tokens=0,
                        letter_probability=first + second,
                    )
                    save(judgement)
                end_if_signaled()

    def token_ids(self, tokenizer: Any, question: str) -> list[int]:
        """Tokenize a question with the model's template; text in the question never becomes a control token."""
        from lpsel.generation.generate import prompt_ids

        example = Example((Turn("user", question.strip()),))  # many chat templates strip it
        return prompt_ids(tokenizer, render_prompt(example, self.model.template, tokenizer))


def _load(spec: ModelSpec, path: str, precision: str, device: Any) -> Any:
    import torch

    from lpsel.model.loss import PerSampleLoss, check_head

    model = load_model(spec, path, torch.float32 if precision == "32-true" else torch.bfloat16).to(device)
    check_head(PerSampleLoss(model, packed=False))
    return model


def answer_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the token ids of the letters A and B, with or without a space; raise a UserError if there are none."""
    return _letter_tokens(tokenizer, "A"), _letter_tokens(tokenizer, "B")


def _letter_tokens(tokenizer: Any, letter: str) -> list[int]:
    ids = set[int]()
    for text in (letter, f" {letter}"):
        encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(encoded) == 1:
            ids.update(encoded)
    without_space = tokenizer.convert_tokens_to_ids(letter)  # SentencePiece only encodes letters with a leading space
    if without_space is not None and without_space != tokenizer.unk_token_id:
        ids.add(without_space)
    if not ids:
        problem = f"its tokenizer has no token for the letter {letter}"
        raise UserError("judge.model", tokenizer.name_or_path, problem, "choose another model")
    return sorted(ids)


def letter_probabilities(
    letters: tuple[list[int], list[int]], model: Any, questions: Sequence[list[int]]
) -> list[tuple[float, float]]:
    """Compute for each question the probabilities that the next token is the first or the second letter."""
    import torch

    from lpsel.model.loss import PerSampleLoss

    longest = max(map(len, questions))
    input_ids_BT = torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids in questions], device=model.device)
    last_B = torch.tensor([len(ids) - 1 for ids in questions], device=model.device)
    with torch.inference_mode():
        # No mask is needed: a causal model never attends to padding on the right.
        hidden_BTH = model.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        hidden_BH = hidden_BTH[torch.arange(len(questions), device=model.device), last_B]
        logits_BV = PerSampleLoss(model, packed=False).logits(hidden_BH)
        probability_BV = logits_BV.float().softmax(dim=-1)
        first_B, second_B = (probability_BV[:, tokens].sum(dim=-1).tolist() for tokens in letters)
    return list(zip(first_B, second_B, strict=True))
