"""Greedy answers of a causal language model, batched by length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lpsel.data.batching import padded
from lpsel.data.template import Rendered
from lpsel.errors import UserError
from lpsel.progress import track

# B rows of a batch, T tokens of a row (padded on the left), G tokens generated

BATCH_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote after one prompt.

    Attributes:
        text: without the token that ended it and without special tokens.
        tokens: generated, the one that ended it counted.
        stopped: it ended by itself, not at the limit of new tokens.
        prompt_tokens: fed.
        prompt_cut: tokens of the prompt left out, from its beginning, since the model's context has no room for them.
    """

    text: str
    tokens: int
    stopped: bool
    prompt_tokens: int
    prompt_cut: int


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Rendered | str],
    *,
    max_new_tokens: int,
    batch_tokens: int = BATCH_TOKENS,
    title: str = "Generating",
) -> list[Generation]:
    """Continue every prompt with the most likely token, over and over, until the model ends its answer.

    Prompts of like length go through the model together. In float32 an answer does not depend on the others of its
    batch; in a lower precision a near tie may fall either way. What the model's own generation settings say of
    sampling, penalties or beams is not used.

    Args:
        model: a causal language model of transformers in evaluation mode, on its device.
        tokenizer: its tokenizer. No padding token is needed, and nothing of it is changed.
        prompts: a string is tokenised with the tokenizer's special tokens.
        max_new_tokens: an answer is cut here.
        batch_tokens: largest batch, in tokens of prompts and answers together, padding counted.
        title: of the progress bar.

    Returns:
        A generation for every prompt, in their order.

    Raises:
        UserError: max_new_tokens leaves no room for a prompt in the model's context.
    """
    room = prompt_room(model.config, max_new_tokens)
    fed, cut = [], []
    for prompt in prompts:
        ids = _prompt_ids(tokenizer, prompt)
        fed.append(_fit(ids, room, tokenizer.bos_token_id))
        cut.append(len(ids) - len(fed[-1]))

    stops = stop_ids(model, tokenizer)
    lengths = np.array([len(ids) + max_new_tokens for ids in fed], dtype=np.int32)
    generations: dict[int, Generation] = {}
    with track(title, total=len(fed), unit="rows") as advance:
        for rows in padded(np.arange(len(fed)), lengths, batch_tokens):
            answers = _continue(model, [fed[i] for i in rows], max_new_tokens, stops)
            for i, answer in zip(rows.tolist(), answers, strict=True):
                stopped = bool(answer) and answer[-1] in stops
                text = tokenizer.decode(answer[:-1] if stopped else answer, skip_special_tokens=True)
                generations[i] = Generation(text, len(answer), stopped, len(fed[i]), cut[i])
            advance(len(rows), tokens=sum(map(len, answers)))
    return [generations[i] for i in range(len(fed))]


def prompt_room(config: Any, max_new_tokens: int) -> int | None:
    """Tokens of a prompt that a model's context holds before `max_new_tokens` more; None where it has no limit.

    Raises:
        UserError: not even one.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return None
    if max_new_tokens >= context:
        raise UserError(
            f"evaluator.max_new_tokens={max_new_tokens}: leaves no room for a prompt in the {context} tokens of "
            f"context of this {config.model_type} model; give evaluator.max_new_tokens={context // 2} or less."
        )
    return context - max_new_tokens


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's and the model's EOS, and the chat template's end of turn."""
    stops: set[int] = set()
    for holder in (tokenizer, model.config.get_text_config(), model.generation_config):
        eos = getattr(holder, "eos_token_id", None)
        stops.update([eos] if isinstance(eos, int) else eos or [])
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
        _, answer, after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("ANSWER")
        following = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"] if answer else []
        # An end of turn that is ordinary text has no token of its own to stop at.
        if following and following[0] in tokenizer.added_tokens_decoder:
            stops.add(following[0])
    return sorted(stops)


def _prompt_ids(tokenizer: Any, prompt: Rendered | str) -> list[int]:
    text, special = (prompt, True) if isinstance(prompt, str) else (prompt.text, prompt.add_special_tokens)
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if special and eos is not None and ids[-1:] == [eos] and not text.endswith(tokenizer.eos_token):
        del ids[-1]  # some tokenizers end every text with EOS: nothing would follow
    return ids or [next((token for token in (bos, eos) if token is not None), 0)]


def _fit(ids: list[int], room: int | None, bos: int | None) -> list[int]:
    """The last `room` tokens; a BOS in front stays in front."""
    if room is None or len(ids) <= room:
        return ids
    keeps_bos = room > 1 and ids[0] == bos
    return ids[:1] + ids[len(ids) - room + 1 :] if keeps_bos else ids[len(ids) - room :]


@torch.inference_mode()
def _continue(model: Any, prompts: list[list[int]], max_new_tokens: int, stops: list[int]) -> list[list[int]]:
    """New tokens of every prompt, up to and with the first that ends the answer."""
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    padding = stops[0] if stops else 0
    input_ids_BT = torch.full((len(prompts), width), padding)
    attended_BT = torch.zeros_like(input_ids_BT)
    for b, ids in enumerate(prompts):
        input_ids_BT[b, width - len(ids) :] = torch.tensor(ids)
        attended_BT[b, width - len(ids) :] = 1

    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=padding,
        use_cache=True,
    )
    own = model.generation_config
    model.generation_config = GenerationConfig()  # else its values fill in what `greedy` leaves open
    try:
        output_BT = model.generate(
            input_ids_BT.to(model.device), attention_mask=attended_BT.to(model.device), generation_config=greedy
        )
    finally:
        model.generation_config = own
    return [_until(row, stops) for row in output_BT[:, width:].tolist()]


def _until(new_G: list[int], stops: list[int]) -> list[int]:
    ends = next((g for g, token in enumerate(new_G) if token in stops), None)
    return new_G if ends is None else new_G[: ends + 1]
