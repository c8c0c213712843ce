"""A judge that is a model on this machine: which letter does it hold more likely as its answer?"""

import gc
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lpsel.errors import UserError, is_int
from lpsel.generation.prompts import Prompt
from lpsel.judging.judge import LOSS, ORDERS, TIE, TOO_LONG, WIN, Judgement, Order, Pair, preference_of
from lpsel.judging.prompt import check_orders, fill, load_prompt
from lpsel.model.device import device_of, resolve_precision
from lpsel.model.fingerprint import model_fingerprint
from lpsel.model.load import load_config, load_model, load_tokenizer, locate
from lpsel.model.spec import ModelSpec

# B questions of a batch, T tokens (padded on the right), H hidden size, V vocabulary

log = logging.getLogger(__name__)

LETTERS = ("A", "B")


@dataclass(frozen=True)
class HFJudge:
    """Compares the probabilities of the letters A and B as the next token, a leading space or not; no text is written.

    The verdict is the likelier letter. Both probabilities are kept in `raw`: where their sum is small, the model was
    about to say something else. Any causal language model of transformers will do; a question that is longer than its
    context has failed.

    Attributes:
        model: the judge; `template` says how the question becomes its prompt.
        prompt: a prompt file of ours by name, or a path.
        cache_dir: for tiny models.
        accelerator, precision: as the trainer's.
        batch_tokens: largest batch, in tokens with padding.
        orders: in which every pair is shown.
    """

    model: ModelSpec
    cache_dir: str
    prompt: str = "letter"
    accelerator: str = "auto"
    precision: str = "auto"
    batch_tokens: int = 16_384
    orders: tuple[Order, ...] = ORDERS
    text: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_orders(self.orders)
        if not is_int(self.batch_tokens) or self.batch_tokens < 1:
            raise UserError(f"judge.batch_tokens={self.batch_tokens}: must be a whole number, at least 1.")
        object.__setattr__(self, "orders", tuple(self.orders))
        object.__setattr__(self, "text", load_prompt(self.prompt))

    @property
    def name(self) -> str:
        return self.model.name

    def identity(self) -> dict[str, Any]:
        return {
            "judge": "hf",
            "model": model_fingerprint(self._path(), self.model.revision),
            "template": self.model.template,
            "prompt": self.text,
            "precision": resolve_precision(self.precision),
        }

    def cost(self, judgement: Judgement) -> float | None:
        return None

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Look for the model, its tokenizer and template, and the tokens of its answers; no weights are loaded."""
        path = self._path()
        load_config(self.model, path)
        tokenizer = load_tokenizer(self.model, path)
        self._ids(tokenizer, fill(self.text, "Say hello.", "Hello.", "Hi."))
        answer_tokens(tokenizer)
        device_of(self.accelerator)
        resolve_precision(self.precision)

    def judge(self, asked: Sequence[tuple[Pair, Order]], keep: Callable[[Judgement], None]) -> None:
        import numpy as np
        import torch

        from lpsel.data.batching import padded
        from lpsel.model.loss import PerSampleLoss, check_head

        path = self._path()
        tokenizer = load_tokenizer(self.model, path)
        letters = answer_tokens(tokenizer)
        context = getattr(load_config(self.model, path).get_text_config(), "max_position_embeddings", None) or math.inf
        questions = [self._ids(tokenizer, fill(self.text, p.prompt, *p.shown(order))) for p, order in asked]
        for (pair, order), ids in zip(asked, questions, strict=True):
            if len(ids) > context:
                keep(Judgement(pair.id, order, None, prompt_tokens=len(ids), failure=TOO_LONG))
        fitting = np.array([i for i, ids in enumerate(questions) if len(ids) <= context], dtype=np.int64)
        if not len(fitting):
            return
        dtype = torch.float32 if resolve_precision(self.precision) == "32-true" else torch.bfloat16
        model = load_model(self.model, path, dtype).to(device_of(self.accelerator))
        check_head(PerSampleLoss(model, packed=False))
        lengths = np.array([len(ids) for ids in questions], dtype=np.int32)
        for rows in padded(fitting, lengths, self.batch_tokens):
            shares = letter_probabilities(model, [questions[i] for i in rows], letters)
            for i, (first, second) in zip(rows.tolist(), shares, strict=True):
                pair, order = asked[i]
                verdict = TIE if first == second else LOSS if first > second else WIN
                keep(
                    Judgement(
                        pair.id,
                        order,
                        preference_of(verdict, order),
                        raw=json.dumps({"A": first, "B": second}),
                        prompt_tokens=len(questions[i]),
                        completion_tokens=0,
                    )
                )
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _path(self) -> str:
        return locate(self.model, Path(self.cache_dir))

    def _ids(self, tokenizer: Any, question: str) -> list[int]:
        """The question as the model's template puts it, with no special token inside the question itself.

        Raises:
            UserError: the template changes what it is given.
        """
        from lpsel.data.dataset import Example, Turn
        from lpsel.data.templates import render_prompt

        question = question.strip()  # many chat templates do
        rendered = render_prompt(Example((Turn("user", question),), ""), self.model.template, tokenizer)
        before, found, after = rendered.text.partition(question)
        if not found:
            raise UserError(
                f"judge.model.template={self.model.template}: the template of {self.model.name} changes the question; "
                "say judge.model.template=plain."
            )
        bos = tokenizer.bos_token_id
        ids = [token for token in tokenizer("")["input_ids"] if token == bos] if rendered.add_special_tokens else []
        for text, is_data in ((before, False), (question, True), (after, False)):
            ids += tokenizer(text, add_special_tokens=False, split_special_tokens=is_data, verbose=False)["input_ids"]
        return ids


def answer_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that say A, and those that say B, with a space in front or not.

    Raises:
        UserError: the tokenizer has no such token.
    """
    found = []
    for letter in LETTERS:
        spelled = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (letter, f" {letter}")]
        tokens = {ids[0] for ids in spelled if len(ids) == 1}
        alone = tokenizer.convert_tokens_to_ids(letter)  # SentencePiece: "A" without the space it puts in front
        if alone is not None and alone != tokenizer.unk_token_id:
            tokens.add(alone)
        if not tokens:
            raise UserError(
                f"judge.model: the tokenizer of {tokenizer.name_or_path} has no token for the letter {letter}; take "
                "another model."
            )
        found.append(sorted(tokens))
    return found[0], found[1]


def letter_probabilities(
    model: Any, questions: Sequence[list[int]], letters: tuple[list[int], list[int]]
) -> list[tuple[float, float]]:
    """How likely each model's next token after each question is one of the first letter's, one of the second's."""
    import torch

    from lpsel.model.loss import PerSampleLoss

    width = max(map(len, questions))
    input_ids_BT = torch.tensor([ids + ids[-1:] * (width - len(ids)) for ids in questions], device=model.device)
    last_B = torch.tensor([len(ids) - 1 for ids in questions], device=model.device)
    with torch.inference_mode():
        # No mask: a causal model never looks at the padding on the right.
        hidden_BTH = model.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        hidden_BH = hidden_BTH[torch.arange(len(questions), device=model.device), last_B]
        logits_BV = PerSampleLoss(model, packed=False).logits(hidden_BH)
        probability_BV = logits_BV.float().softmax(dim=-1)
        first_B, second_B = (probability_BV[:, tokens].sum(dim=-1).tolist() for tokens in letters)
    return list(zip(first_B, second_B, strict=True))
