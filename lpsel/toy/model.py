"""Tiny Llama-style models with a tokenizer of their own, made on the spot: no download, less than a minute on a CPU.

A model with random weights learns nothing from a few hundred rows, so each is pre-trained for a short while, as a real
base model has been: next-token prediction on formulas that show the skills of `lpsel.toy.data`, such as
`reverse(red cat)=cat red`, never worded as instructions and never with a problem that may be held out.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from lpsel.console import track
from lpsel.data.dataset import Example, Turn
from lpsel.data.templates import render
from lpsel.errors import UserError, is_int
from lpsel.storage import folder_atomically, open_as
from lpsel.toy.data import Draw, generate, problems

VERSION = 1  # of what comes out of the same arguments: raise it when this file or the synthetic tasks change

EOS, PAD = "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{{ '" + EOS + "\n' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# How formulas write a problem; the answer follows without a space, as it does in the Alpaca template.
FORMATS = ("{task}({about}{given})=", "## {task} {about}\n{given}\n\n## Answer:")
SMALLEST_VOCABULARY = 258  # the 256 bytes, EOS and PAD
TOKENIZER_ROWS = 4000  # instructions, and as many formulas, that the tokenizer's merges are learned from
CONTEXT = 1024

BATCH_SIZE = 48  # formulas of an optimiser step
MUON_LEARNING_RATE = 0.02  # of the weight matrices; both after WARMUP_STEPS, then a cosine down to 0
ADAMW_LEARNING_RATE = 3e-3  # of embeddings and norms
WARMUP_STEPS = 50
WINDOW = 16  # batches that are sorted by length together
IGNORED = -100


def make_tiny(
    layers: int, hidden: int, heads: int, vocabulary: int, pretrain_steps: int, seed: int, cache_dir: Path
) -> Path:
    """Give the Hugging Face folder of the tiny model with these arguments, making it where it is not there yet.

    Args:
        layers, hidden, heads: decoder layers, width, and attention heads.
        vocabulary: tokens of the byte-level BPE tokenizer; fewer where the text has no more pairs to merge.
        pretrain_steps: optimiser steps of pre-training, of BATCH_SIZE formulas each.
        seed: of the weights and of the text.
        cache_dir: the folder is in its `tiny/`, under a key of all the arguments above.

    Raises:
        UserError: an argument out of range.
    """
    arguments = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "vocabulary": vocabulary,
        "pretrain_steps": pretrain_steps,
        "seed": seed,
    }
    check_tiny(arguments)
    disable_progress_bar()
    key = hashlib.sha256(json.dumps([VERSION, arguments], sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(cache_dir) / "tiny" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            tokenizer = _tokenizer(vocabulary, seed)
            with torch.random.fork_rng(devices=[]), _one_thread():
                torch.manual_seed(seed)
                model = _initial(layers, hidden, heads, tokenizer)
                _pretrain(model, tokenizer, pretrain_steps, seed)
            with folder_atomically(folder) as made:
                tokenizer.save_pretrained(made)
                model.save_pretrained(made)
                open_as(made, "config.json")
    return folder


def formulas(seed: int) -> Iterator[tuple[str, str]]:
    """Yield the pre-training text without end: (question, answer), to be read one behind the other."""
    draw = Draw(f"{seed} formulas")
    for task, _, problem in problems(draw, "train"):
        about = f"{problem.about}; " if problem.about else ""
        yield draw.one(FORMATS).format(task=task, about=about, given=problem.given), problem.answer


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread is faster than two on matrices this small, and sums do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_tiny(arguments: Mapping[str, Any]) -> None:
    """See that a tiny model can be made with these arguments.

    Raises:
        UserError: one is out of range.
    """
    smallest = {"layers": 1, "hidden": 2, "heads": 1, "vocabulary": SMALLEST_VOCABULARY, "pretrain_steps": 0}
    for name, least in smallest.items():
        value = arguments[name]
        if not is_int(value) or value < least:
            raise UserError(f"tiny.{name}={value}: must be a whole number, at least {least}.")
    if arguments["hidden"] % (2 * arguments["heads"]):
        raise UserError(
            f"tiny.hidden={arguments['hidden']}: must be a multiple of twice tiny.heads={arguments['heads']}."
        )


def _tokenizer(vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that it can read any text; each digit is one token, and nothing is put before a row."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    instructions = [_alpaca(row) for row in generate("train", rows=TOKENIZER_ROWS, held_out=0, seed=seed, wrong=0.0)]
    lines = [question + answer for question, answer in islice(formulas(seed), TOKENIZER_ROWS)]
    tokenizer.train_from_iterator(instructions + lines, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _alpaca(row: dict[str, str]) -> str:
    turns = (Turn("user", row["instruction"]), Turn("assistant", row["output"]))
    return render(Example(turns, row["input"]), "alpaca", SimpleNamespace(eos_token=EOS)).text


def _initial(layers: int, hidden: int, heads: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=CONTEXT,
            initializer_range=0.05,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """Next-token training on the answers and the EOS behind them: the questions are random, with nothing to learn.

    Muon for the weight matrices, AdamW for embeddings and norms.
    """
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [model.model.embed_tokens.weight, *(weight for weight in model.model.parameters() if weight.ndim == 1)]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAMW_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: _share_of_rate(step, steps)) for each in optimizers
    ]
    model.train()
    with track("Pre-training the tiny model", total=steps, unit="steps") as advance:
        for ids_BT, labels_BT in islice(_batches(tokenizer, seed), steps):
            hidden_BTD = model.model(input_ids=ids_BT[:, :-1]).last_hidden_state
            learned_BT = labels_BT[:, 1:] != IGNORED
            loss = cross_entropy(model.lm_head(hidden_BTD[learned_BT]), labels_BT[:, 1:][learned_BT])
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            advance(tokens=ids_BT.numel())
    model.eval()


def _share_of_rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))


def _batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (ids, labels), both (B, T) and padded on the right; batches of like length, in random order."""
    text, order = formulas(seed), Draw(f"{seed} order")
    while True:
        questions, answers = zip(*islice(text, WINDOW * BATCH_SIZE), strict=True)
        question_ids = tokenizer(list(questions))["input_ids"]
        answer_ids = tokenizer(list(answers))["input_ids"]
        rows = [(asked, [*said, tokenizer.eos_token_id]) for asked, said in zip(question_ids, answer_ids, strict=True)]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        for batch in order.distinct(range(WINDOW), WINDOW):
            yield _padded(rows[batch * BATCH_SIZE : (batch + 1) * BATCH_SIZE], tokenizer.pad_token_id)


def _padded(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    length = max(len(asked) + len(said) for asked, said in rows)
    ids_BT = torch.full((len(rows), length), pad)
    labels_BT = torch.full((len(rows), length), IGNORED)
    for i, (asked, said) in enumerate(rows):
        ids_BT[i, : len(asked) + len(said)] = torch.tensor(asked + said)
        labels_BT[i, len(asked) : len(asked) + len(said)] = torch.tensor(said)
    return ids_BT, labels_BT
