"""Generate answers with a causal language model of transformers, greedy or sampled, batched by length."""

# B rows in a batch, T tokens per row (padded on the left), G generated tokens, V vocabulary size
import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, tee
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from lpsel.console import track
from lpsel.data.apply_template import time_limit
from lpsel.data.batching import padded
from lpsel.data.control_tokens import Rendered, control_tokens
from lpsel.errors import UserError
from lpsel.generation.sampling import Generation, Sampling
from lpsel.model.copies import MapBatches

WINDOW = 1024  # prompts to keep in memory and sort by length
ROWS_PER_GPU = 128  # prompts; with fewer, starting another process takes longer than it saves


class _Input(NamedTuple):
    """A tokenized prompt."""

    number: int  # of the prompt
    ids: list[int]  # token ids, truncated to the context
    cut: int  # number of tokens cut from the beginning


def generate(
    map_batches: MapBatches,
    tokenizer: Any,
    prompts: Iterable[Rendered],
    total: int,
    sampling: Sampling,
    *,
    batch_tokens: int,
    title: str,
) -> Iterator[dict[int, Generation]]:
    """Yield a model's answers batch by batch, as a mapping from the index of the prompt to its answer.

    In float32, greedy and sampled answers do not depend on the other prompts in the batch; in lower precision, a near
    tie may be decided differently. Sampling, penalties and beams in the model's generation config are ignored.

    Args:
        map_batches: `Copies.map` of a causal language model of transformers in evaluation mode.
        prompts: an iterable of `total` prompts.
        batch_tokens: largest batch, in tokens of prompts and answers with padding.

    Raises:
        UserError: max_new_tokens leaves no room for a prompt in the model's context.
    """
    ((room, stops),) = map_batches(partial(_limits, sampling.max_new_tokens), [tokenizer])
    batches, model_inputs = tee(_batches(tokenizer, prompts, room, sampling.max_new_tokens, batch_tokens))
    outputs = map_batches(
        partial(_continue, sampling, stops), ([prompt.ids for prompt in batch] for batch in model_inputs)
    )
    with track(title, total=total) as advance:
        for batch, output in zip(batches, outputs, strict=True):
            answers = {}
            for prompt, ids in zip(batch, output, strict=True):
                stopped = bool(ids) and ids[-1] in stops
                text = tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
                answers[prompt.number] = Generation(text, len(ids), stopped, len(prompt.ids), prompt.cut)
            yield answers
            advance(len(answers), tokens=sum(map(len, output)))


def _batches(
    tokenizer: Any, prompts: Iterable[Rendered], room: int | None, max_new_tokens: int, batch_tokens: int
) -> Iterator[list[_Input]]:
    """Tokenize WINDOW prompts at a time, and yield them in batches of similar length."""
    numbered = enumerate(prompts)
    while window := list(islice(numbered, WINDOW)):
        inputs = []
        for number, prompt in window:
            ids = prompt_ids(tokenizer, prompt)
            fitting = _last_tokens(ids, room, tokenizer.bos_token_id)
            inputs.append(_Input(number, fitting, len(ids) - len(fitting)))
        lengths = np.array([len(prompt.ids) + max_new_tokens for prompt in inputs], dtype=np.int32)
        for rows in padded(np.arange(len(inputs)), lengths, batch_tokens):
            yield [inputs[row] for row in rows]


def _limits(max_new_tokens: int, model: Any, tokenizer: Any) -> tuple[int | None, list[int]]:
    """Return the room for prompts and the ids that end an answer, from the model and its tokenizer."""
    return prompt_room(model.config, max_new_tokens), stop_ids(tokenizer, model.config, model.generation_config)


def in_order(batches: Iterable[dict[int, Generation]]) -> Iterator[Generation]:
    """Yield the answers from `generate` in the order of the prompts."""
    waiting: dict[int, Generation] = {}
    next_index = 0
    for answers in batches:
        waiting |= answers
        while next_index in waiting:
            yield waiting.pop(next_index)
            next_index += 1


def prompt_room(config: Any, max_new_tokens: int) -> int | None:
    """Return how many prompt tokens fit into a model's context with `max_new_tokens`; None if it has no limit.

    Raises:
        UserError: there is no room for a prompt.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return None
    if max_new_tokens >= context:
        problem = f"leaves no room for a prompt in the {context} tokens of context of this {config.model_type} model"
        raise UserError("evaluator.max_new_tokens", max_new_tokens, problem, f"set {context // 2} or less")
    return context - max_new_tokens


def stop_ids(tokenizer: Any, config: Any, generation_config: Any) -> list[int]:
    """Return the token ids that end an answer: EOS of tokenizer and model, and the end of turn of the chat template."""
    stops: set[int] = set()
    for holder in (tokenizer, config.get_text_config(), generation_config):
        eos = getattr(holder, "eos_token_id", None)
        stops.update([eos] if isinstance(eos, int) else eos or [])
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
        with time_limit(tokenizer):
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        _, answer, after = text.rpartition("ANSWER")
        following = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"] if answer else []
        # An end of turn that is ordinary text is not a single token.
        if following and following[0] in tokenizer.added_tokens_decoder:
            stops.add(following[0])
    return sorted(stops)


def prompt_ids(tokenizer: Any, prompt: Rendered) -> list[int]:
    """Return the token ids of a prompt, at least one, without the EOS that some tokenizers append."""
    special = prompt.add_special_tokens
    if prompt.controls is not None:
        ids = list(control_tokens(tokenizer).encode(prompt).ids)
    else:
        ids = list(tokenizer(prompt.text, add_special_tokens=special, verbose=False)["input_ids"])
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if special and eos is not None and ids[-1:] == [eos] and not prompt.text.endswith(tokenizer.eos_token):
        del ids[-1]  # the model would generate nothing after it
    return ids or [next((token for token in (bos, eos) if token is not None), 0)]


def _last_tokens(ids: list[int], room: int | None, bos: int | None) -> list[int]:
    """Truncate a prompt to its last `room` tokens, but keep the BOS if there is one."""
    if room is None or len(ids) <= room:
        return ids
    first = ids[:1] if room > 1 and ids[0] == bos else []
    return first + ids[len(ids) - room + len(first) :]


@torch.inference_mode()
def _continue(sampling: Sampling, stops: list[int], model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Generate the new tokens for every prompt, up to and including the first that ends the answer."""
    padding = stops[0] if stops else 0
    rows = [torch.tensor(ids) for ids in prompts]
    input_ids_BT = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
    attended_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    greedy = GenerationConfig(
        do_sample=False,  # _InverseTransform draws samples by masking all other tokens
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=padding,
        use_cache=True,
    )
    saved_config = model.generation_config
    model.generation_config = GenerationConfig()  # otherwise its values would apply where `greedy` sets none
    try:
        output_BT = model.generate(
            input_ids_BT.to(model.device),
            attention_mask=attended_BT.to(model.device),
            generation_config=greedy,
            logits_processor=_processors(prompts, sampling, model.device),
        )
    finally:
        model.generation_config = saved_config
    new_BG = output_BT[:, input_ids_BT.shape[1] :].tolist()
    return [_up_to_stop(new_G, stops) for new_G in new_BG]


def _up_to_stop(ids: list[int], stops: list[int]) -> list[int]:
    end = next((position for position, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def _processors(prompts: list[list[int]], sampling: Sampling, device: torch.device) -> list[LogitsProcessor]:
    if sampling.greedy:
        return []
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    uniform_BG = torch.stack([_uniform(ids, sampling) for ids in prompts]).to(device)
    return [*processors, _InverseTransform(uniform_BG)]


def _uniform(ids: list[int], sampling: Sampling) -> torch.Tensor:
    """Return a random number in [0, 1) for every token to generate, shape (G,), from the seed and the prompt only."""
    seed = hashlib.sha256(f"{sampling.seed}:{ids}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little", signed=True))
    return torch.rand(sampling.max_new_tokens, generator=generator)


class _InverseTransform(LogitsProcessor):
    """Keeps one token per row, chosen by inverse transform sampling from random numbers in [0, 1) drawn in advance.

    With one number per token and row, samples do not depend on the rest of the batch.
    """

    def __init__(self, uniform_BG: torch.Tensor) -> None:
        self.uniform_BG = uniform_BG
        self.g = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulative_BV = scores.double().softmax(-1).cumsum(-1)
        # The numbers are float32, so the product stays below the total, and the chosen token has nonzero probability.
        target_B1 = self.uniform_BG[:, self.g, None].double() * cumulative_BV[:, -1:]
        self.g += 1
        last = scores.shape[-1] - 1  # for NaN logits
        token_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp_(max=last)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)
