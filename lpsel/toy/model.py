"""Create tiny Llama models with their own tokenizer, in about a minute on a CPU without a download.

A model with random weights learns nothing from a few hundred rows, so each model is briefly pre-trained, like a real
base model: next-token prediction on formulas that demonstrate the skills of `lpsel.toy.data`, such as
`reverse(red cat)=cat red`. They are not phrased as instructions and do not contain held-out problems.
"""

# B rows in a batch, T tokens per row (padded), D hidden size
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from lpsel.cache import Entry
from lpsel.console import track
from lpsel.errors import UserError, check_int
from lpsel.storage import folder_atomically, open_as
from lpsel.toy.data import Draw, generate, problems

EOS, PAD = "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{{ '" + EOS + "\n' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# The tokenizer is trained on text with the Alpaca prompt (`lpsel.data.templates`), without and with an input.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:{output}",
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:{output}",
)
# How problems are written as formulas; the answer follows without a space, as in the Alpaca prompt.
FORMULAS = ("{task}({about}{given})=", "## {task} {about}\n{given}\n\n## Answer:")
SMALLEST = {"layers": 1, "hidden": 2, "heads": 1, "vocabulary": 258, "pretrain_steps": 0}  # 256 bytes, EOS and PAD
TOKENIZER_ROWS = 4000  # number of instructions, and of formulas, that the tokenizer is trained on
CONTEXT = 1024

BATCH_SIZE = 48  # formulas per optimizer step
MUON_LEARNING_RATE = 0.02  # for weight matrices; warmup, then cosine decay to 0
ADAMW_LEARNING_RATE = 3e-3  # for embeddings and norms
WARMUP_STEPS = 50
WINDOW = 16  # number of batches whose rows are sorted by length together
IGNORED = -100


def make_tiny(
    layers: int, hidden: int, heads: int, vocabulary: int, pretrain_steps: int, seed: int, cache_dir: Path
) -> Path:
    """Return the Hugging Face folder of a tiny model with these arguments, creating it if it is not cached.

    Args:
        layers, hidden, heads: number of decoder layers, hidden size and number of attention heads.
        vocabulary: vocabulary size of the byte-level BPE tokenizer; it is smaller if the text runs out of merges.
        pretrain_steps: number of optimizer steps, with BATCH_SIZE formulas each.
        seed: seed for the weights and the text.

    Raises:
        UserError: an argument is out of range.
    """
    key = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "vocabulary": vocabulary,
        "pretrain_steps": pretrain_steps,
        "seed": seed,
    }
    check_tiny(key)
    disable_progress_bar()
    entry = Entry.of(cache_dir, "tiny_models", key)
    folder = entry.folder / "model"
    with entry.locked():
        if entry.find() is None:
            tokenizer = _tokenizer(vocabulary, seed)
            with torch.random.fork_rng(devices=[]), _one_thread():
                torch.manual_seed(seed)
                model = _initial(layers, hidden, heads, tokenizer)
                _pretrain(model, tokenizer, pretrain_steps, seed)
            with folder_atomically(folder) as temporary:
                tokenizer.save_pretrained(temporary)
                model.save_pretrained(temporary)
                open_as(temporary, "config.json")
            entry.commit([file.relative_to(entry.folder).as_posix() for file in sorted(folder.iterdir())])
    return folder


def check_tiny(arguments: Mapping[str, Any]) -> None:
    """Check the arguments of `make_tiny`.

    Raises:
        UserError: an argument is out of range.
    """
    for name, minimum in SMALLEST.items():
        check_int(f"tiny.{name}", arguments[name], minimum)
    hidden, heads = arguments["hidden"], arguments["heads"]
    if hidden % (2 * heads):
        raise UserError("tiny.heads", heads, f"2 * tiny.heads must divide tiny.hidden={hidden}", "change either")


def formulas(seed: int) -> Iterator[tuple[str, str]]:
    """Yield the pre-training text forever, as (question, answer)."""
    draw = Draw(f"{seed} formulas")
    for task, _, problem in problems(draw, "train"):
        about = f"{problem.about}; " if problem.about else ""
        yield draw.one(FORMULAS).format(task=task, about=about, given=problem.given), problem.answer


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, which is faster for such small matrices and gives the same sums on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tokenizer(vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which encodes any text; every digit is one token, and no BOS is added."""
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
    rows = generate("train", rows=TOKENIZER_ROWS, held_out=0, seed=seed, wrong=0.0)
    instructions = [ALPACA[bool(row["input"])].format(**row) for row in rows]
    lines = [question + answer for question, answer in islice(formulas(seed), TOKENIZER_ROWS)]
    tokenizer.train_from_iterator(instructions + lines, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)
    fast.chat_template = CHAT_TEMPLATE
    return fast


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
    """Train next-token prediction on answers and their EOS; questions are random, so there is nothing to learn.

    Uses Muon for weight matrices, AdamW for embeddings and norms.
    """
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [model.model.embed_tokens.weight, *(weight for weight in model.model.parameters() if weight.ndim == 1)]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAMW_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    factor = partial(_rate_factor, steps=steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    model.train()
    with track("Pre-training an embedded model (once)", total=steps, unit="steps") as advance:
        for ids_BT, labels_BT in islice(_batches(tokenizer, seed), steps):
            hidden_BTD = model.model(input_ids=ids_BT[:, :-1]).last_hidden_state
            targets_BT = labels_BT[:, 1:]
            supervised_BT = targets_BT != IGNORED
            loss = cross_entropy(model.lm_head(hidden_BTD[supervised_BT]), targets_BT[supervised_BT])
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            advance(tokens=ids_BT.numel())
    model.eval()


def _rate_factor(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear warmup times a cosine decay."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return warmup * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))


def _batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (ids, labels), both (B, T) and right-padded, with rows of similar length and batches in random order."""
    text, draw = formulas(seed), Draw(f"{seed} order")
    while True:
        questions, answers = zip(*islice(text, WINDOW * BATCH_SIZE), strict=True)
        question_ids = tokenizer(list(questions))["input_ids"]
        answer_ids = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(answers))["input_ids"]]
        rows = list(zip(question_ids, answer_ids, strict=True))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        for number in draw.distinct(range(WINDOW), WINDOW):
            yield _padded(rows[number * BATCH_SIZE : (number + 1) * BATCH_SIZE], tokenizer.pad_token_id)


def _padded(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    ids = [torch.tensor(question + answer) for question, answer in rows]
    labels = [torch.tensor([IGNORED] * len(question) + answer) for question, answer in rows]
    pad_right = partial(pad_sequence, batch_first=True)
    return pad_right(ids, padding_value=pad), pad_right(labels, padding_value=IGNORED)
