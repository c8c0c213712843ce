"""Answers of a causal language model of transformers, greedy or sampled, batched by length."""

# B rows of a batch, T tokens of a row (padded on the left), G tokens generated, V vocabulary
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from lpsel.console import track
from lpsel.data.batching import padded
from lpsel.data.templates import Rendered
from lpsel.errors import UserError
from lpsel.generation.sampling import Generation, Sampling

BATCH_TOKENS = 16_384

Keep = Callable[[dict[int, Generation]], None]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Rendered | str],
    sampling: Sampling,
    *,
    batch_tokens: int = BATCH_TOKENS,
    title: str = "Generating",
    keep: Keep | None = None,
) -> list[Generation]:
    """Continue every prompt until the model ends its answer.

    Prompts of like length go through the model together. In float32 an answer does not depend on the others of its
    batch, sampled or not; in a lower precision a near tie may fall either way. What the model's own generation
    settings say of sampling, penalties or beams is not used.

    Args:
        model: a causal language model of transformers in evaluation mode, on its device.
        tokenizer: its tokenizer. No padding token is needed, and nothing of it is changed.
        prompts: a string is tokenised with the tokenizer's special tokens.
        sampling: how tokens are chosen, and how many at most.
        batch_tokens: largest batch, in tokens of prompts and answers together, padding counted.
        title: of the progress bar.
        keep: called after every batch with its generations by the prompts' places, before the next is begun.

    Returns:
        A generation for every prompt, in their order.

    Raises:
        UserError: max_new_tokens leaves no room for a prompt in the model's context.
    """
    fed, cut = fit_prompts(model.config, tokenizer, prompts, sampling.max_new_tokens)
    stops = stop_ids(tokenizer, model.config, model.generation_config)
    lengths = np.array([len(ids) + sampling.max_new_tokens for ids in fed], dtype=np.int32)
    generations: dict[int, Generation] = {}
    with track(title, total=len(fed), unit="rows") as advance:
        for rows in padded(np.arange(len(fed)), lengths, batch_tokens):
            new = _continue(model, [fed[i] for i in rows], sampling, stops)
            done = {
                i: generation_of(tokenizer, ids, stops, len(fed[i]), cut[i])
                for i, ids in zip(rows.tolist(), new, strict=True)
            }
            if keep is not None:
                keep(done)
            generations |= done
            advance(len(rows), tokens=sum(map(len, new)))
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


def fit_prompts(
    config: Any, tokenizer: Any, prompts: Sequence[Rendered | str], max_new_tokens: int
) -> tuple[list[list[int]], list[int]]:
    """The ids fed of every prompt, and how many were left out in front since the context has no room for them."""
    room = prompt_room(config, max_new_tokens)
    whole = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    fed = [_fit(ids, room, tokenizer.bos_token_id) for ids in whole]
    return fed, [len(ids) - len(kept) for ids, kept in zip(whole, fed, strict=True)]


def stop_ids(tokenizer: Any, config: Any, generation_config: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's and the model's EOS, and the chat template's end of turn."""
    stops: set[int] = set()
    for holder in (tokenizer, config.get_text_config(), generation_config):
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


def generation_of(tokenizer: Any, new: list[int], stops: list[int], prompt_tokens: int, prompt_cut: int) -> Generation:
    """New tokens, up to and with the one that ended the answer, as a generation."""
    stopped = bool(new) and new[-1] in stops
    text = tokenizer.decode(new[:-1] if stopped else new, skip_special_tokens=True)
    return Generation(text, len(new), stopped, prompt_tokens, prompt_cut)


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
def _continue(model: Any, prompts: list[list[int]], sampling: Sampling, stops: list[int]) -> list[list[int]]:
    """New tokens of every prompt, up to and with the first that ends the answer."""
    width = max(map(len, prompts))
    padding = stops[0] if stops else 0
    input_ids_BT = torch.full((len(prompts), width), padding)
    attended_BT = torch.zeros_like(input_ids_BT)
    for b, ids in enumerate(prompts):
        input_ids_BT[b, width - len(ids) :] = torch.tensor(ids)
        attended_BT[b, width - len(ids) :] = 1

    greedy = GenerationConfig(
        do_sample=False,  # a sample is drawn by _Drawn, which leaves one token to choose from
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=padding,
        use_cache=True,
    )
    own = model.generation_config
    model.generation_config = GenerationConfig()  # else its values fill in what `greedy` leaves open
    try:
        output_BT = model.generate(
            input_ids_BT.to(model.device),
            attention_mask=attended_BT.to(model.device),
            generation_config=greedy,
            logits_processor=_processors(prompts, sampling, model.device),
        )
    finally:
        model.generation_config = own
    return [_until(row, stops) for row in output_BT[:, width:].tolist()]


def _until(new_G: list[int], stops: list[int]) -> list[int]:
    ends = next((g for g, token in enumerate(new_G) if token in stops), None)
    return new_G if ends is None else new_G[: ends + 1]


def _processors(prompts: list[list[int]], sampling: Sampling, device: torch.device) -> LogitsProcessorList:
    if sampling.greedy:
        return LogitsProcessorList()
    chance_BG = torch.stack([_chances(ids, sampling) for ids in prompts]).to(device)
    nucleus = [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    return LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature)), *nucleus, _Drawn(chance_BG)])


def _chances(ids: list[int], sampling: Sampling) -> torch.Tensor:
    """A number in [0, 1) for every token of a prompt's answer, shape (G,), from the seed and the prompt alone."""
    seed = hashlib.sha256(f"{sampling.seed}:{ids}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little", signed=True))
    return torch.rand(sampling.max_new_tokens, generator=generator)


class _Drawn(LogitsProcessor):
    """Leaves of every row's tokens the one that its next number in [0, 1) falls on.

    The tokens share the interval in the order of the vocabulary, each as much as it is likely (inversion of the
    distribution function). One number a token, drawn beforehand, makes a row's sample its own in any batch.
    """

    def __init__(self, chance_BG: torch.Tensor) -> None:
        self.chance_BG = chance_BG
        self.g = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulative_BV = scores.double().softmax(-1).cumsum(-1)
        # float32 chances: the product stays below the sum of all, so a token of some probability is hit.
        aim_B1 = self.chance_BG[:, self.g, None].double() * cumulative_BV[:, -1:]
        self.g += 1
        last = scores.shape[-1] - 1  # where a model's logits are not numbers
        token_B1 = torch.searchsorted(cumulative_BV, aim_B1, right=True).clamp_(max=last)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)
