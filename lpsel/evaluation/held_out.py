"""Evaluate models on held-out rows: likelihood of reference responses, and similarity of generated answers to them."""

# N rows to evaluate on; arrays of `reference_nll` have an entry for every row of the source

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import repeat, tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lpsel.data.batching import NO_ROWS
from lpsel.data.column_forms import Example
from lpsel.data.content_ids import counts, first_kinds
from lpsel.data.control_tokens import Rendered
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.shared_source import shared_source
from lpsel.data.templates import holds_conversations, render_prompt, resolve_template
from lpsel.data.tokens import Tokens, tokenize, tokenizer_hash
from lpsel.errors import UserError, check_int
from lpsel.evaluation.evaluator import Candidates, EvaluationContext, generation_files
from lpsel.evaluation.likelihood import Loaded, reference_nll, with_own_attention
from lpsel.evaluation.row_metrics import METRICS, RowMetrics, compare_rows
from lpsel.evaluation.tables import reference_table
from lpsel.generation.answers import answer_counts
from lpsel.generation.generate import ROWS_PER_GPU, generate, in_order, prompt_room
from lpsel.generation.sampling import Generation, Sampling
from lpsel.judging.reference import exact_match, rouge_l
from lpsel.model.copies import Copies, devices_for
from lpsel.model.device import gpu_memory
from lpsel.model.load import load_config, load_tokenizer, locate
from lpsel.model.memory_estimate import recording_pack
from lpsel.model.spec import ModelSpec
from lpsel.storage import distinct, finite, write_lines
from lpsel.training.monitors import check_vocabulary

log = logging.getLogger(__name__)

LOSSES_PER_GPU = 16_384  # without generation; starting another process only pays off above this many rows
PACKS = 8  # packs that a GPU computes between two transfers of results to the host


class Inputs(NamedTuple):
    """A model and its evaluation data, prepared before any weights are loaded."""

    name: str
    spec: ModelSpec
    path: str
    tokenizer: Any
    source: Source
    tokens: Tokens  # of all rows
    rows: NDArray[np.int64] = NO_ROWS  # numbers of the rows to evaluate on, which all models can use, shape (N,)

    def prompts(self) -> Iterator[tuple[Example, Rendered]]:
        """Yield the rows to evaluate on with their prompts, read from the source again to save memory."""
        used_N = np.zeros(len(self.source), bool)
        used_N[self.rows] = True
        for row in self.source:
            if used_N[row.index]:
                yield row.example, render_prompt(row.example, self.spec.template, self.tokenizer)


@dataclass(frozen=True)
class ReferenceEvaluator:
    """Evaluates models against the reference responses of held-out rows.

    - `nll`: mean negative log-likelihood per supervised token, in nats, over all tokens of all rows; `perplexity` is
      exp(nll). Neither is comparable between tokenizers.
    - `bits_per_byte`: negative log-likelihood of the response text without special tokens, in bits per UTF-8 byte;
      comparable between tokenizers.
    - `exact_match`: fraction of greedy answers equal to the reference, except for surrounding whitespace.
    - `rouge_l`: mean ROUGE-L F1 of the greedy answers.

    In a conversation, the likelihood covers all assistant turns, and the last one is generated. Every metric has a 95%
    interval over rows. Differences to the first model, the baseline, are paired: see `compare_rows`.

    Attributes:
        dataset: the held-out rows.
        max_new_tokens: maximum length of greedy answers; 0 skips generation, and with it exact_match and rouge_l.
        batch_tokens: largest batch, in tokens with padding; changes speed and memory, not float32 results.
        resamples, seed: settings of the bootstrap over rows.
    """

    dataset: DatasetSpec
    max_new_tokens: int = 256
    batch_tokens: int = 16_384
    resamples: int = 10_000
    seed: int = 42

    table = staticmethod(reference_table)

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "resamples"):
            check_int(f"evaluator.{name}", getattr(self, name), 1)
        check_int("evaluator.max_new_tokens", self.max_new_tokens, 0)
        Sampling(self.max_new_tokens or 1, seed=self.seed)  # validates both

    def check(self, candidates: Candidates) -> None:
        """Raise a UserError unless there is at least one model and all models are local."""
        candidates.local()

    def evaluate(self, candidates: Candidates, context: EvaluationContext) -> dict[str, Any]:
        """Evaluate the models one at a time, and write generations/NAME.jsonl after each of them.

        Returns:
            `models` in their order, each with `metrics` and `difference`, see `compare_rows`. Undefined values are
            None, such as the difference in NLL between models with different tokenizers.

        Raises:
            UserError: there are no rows, a model is missing, a prompt does not fit into the context, or the template
                is unsuitable (all raised before any model is loaded); or the architecture is not supported.
        """
        source = shared_source(self.dataset)
        specs = candidates.local()
        names = [spec.name for spec in specs]
        prepared = [
            self._prepare(name, spec, source, context.cache_dir)
            for name, spec in zip(distinct(names), specs, strict=True)
        ]
        unusable = reduce(first_kinds, (model.tokens.unusable for model in prepared))
        rows = np.arange(len(source)) if unusable is None else np.flatnonzero(unusable.is_null())
        if not len(rows):
            raise UserError("dataset", source.spec.name, "no row can be used by all models", "set another template")
        inputs = [model._replace(rows=rows) for model in prepared]
        for model in inputs:
            for _ in model.prompts():  # raises if a template rejects a prompt
                pass
        measured, reports = [], []
        for model, file in zip(inputs, generation_files(names, context.folder), strict=True):
            row_metrics, report = self._evaluate_model(model, file, context)
            measured.append(row_metrics)
            reports.append(report)
            if len(inputs) > 2:
                log.info("Evaluated %s (%d of %d)", model.name, len(reports), len(inputs))
        metrics = METRICS if self.max_new_tokens else METRICS[: METRICS.index("exact_match")]
        compared = compare_rows(measured, self.resamples, self.seed, metrics)
        return finite(
            {
                "evaluator": "reference",
                "dataset": source.spec.name,
                "n": len(rows),
                "rows_unusable": counts(unusable),
                "data_fingerprint": source.fingerprint,
                "data_commit": source.commit,
                "baseline": reports[0]["name"],
                "max_new_tokens": self.max_new_tokens,
                "resamples": self.resamples,
                "seed": self.seed,
                "models": [report | result for report, result in zip(reports, compared, strict=True)],
            }
        )

    def _prepare(self, name: str, spec: ModelSpec, source: Source, cache_dir: Path) -> Inputs:
        path = locate(spec, cache_dir)
        prompt_room(load_config(spec, path), self.max_new_tokens)
        tokenizer = load_tokenizer(spec, path)
        spec = replace(spec, template=resolve_template(spec.template, holds_conversations(source), tokenizer))
        tokens = tokenize(source, tokenizer, spec.template, spec.max_length, cache_dir)
        check_vocabulary(tokens, tokenizer, spec, path)
        return Inputs(name, spec, path, tokenizer, source, tokens)

    def _evaluate_model(
        self, inputs: Inputs, file: str, context: EvaluationContext
    ) -> tuple[RowMetrics, dict[str, Any]]:
        started = time.perf_counter()
        spec, device, dtype = inputs.spec, context.device, context.dtype
        precision = "32-true" if dtype == torch.float32 else "bf16-true"
        config = load_config(spec, inputs.path)
        largest = recording_pack(config, precision, self.batch_tokens, gpu_memory(device))
        title, special = f"References, {inputs.name}", inputs.tokenizer.all_special_ids
        devices = devices_for(device, len(inputs.rows), ROWS_PER_GPU if self.max_new_tokens else LOSSES_PER_GPU)
        with Copies(partial(Loaded.of, spec, inputs.path, dtype, inputs.tokens.folder), devices) as copies:
            loaded = time.perf_counter()
            at_once = PACKS if device.type == "cuda" else 1
            nll_N, text_nll_N = reference_nll(copies, inputs.tokens, largest, title, special, at_once)
            measured = _without_answers(inputs, nll_N, text_nll_N)
            scored = time.perf_counter()
            answered: Counter[str] = Counter()
            write_lines(context.folder / file, self._answer(copies, inputs, measured, answered))
        seconds = {"load": loaded - started, "nll": scored - loaded, "generate": time.perf_counter() - scored}
        if not_finite := int((~np.isfinite(measured.nll)).sum()):
            log.warning("%s: NLL is not defined because it is NaN or Inf in %d rows", inputs.name, not_finite)
        return measured, {
            "name": inputs.name,
            "model": inputs.path,
            "template": inputs.spec.template,
            "max_length": inputs.spec.max_length,
            "tokenizer": tokenizer_hash(inputs.tokenizer),
            "rows": len(inputs.rows),
            "rows_without_supervised_tokens": (measured.tokens == 0).sum(),
            "rows_truncated": inputs.tokens.truncated[inputs.rows].sum(),
            "rows_not_finite": not_finite,
            "supervised_tokens": measured.tokens.sum(),
            "response_bytes": measured.response_bytes.sum(),
            **answered,
            "seconds": {step: round(value, 3) for step, value in seconds.items()},
            "generations": file,
        }

    def _answer(
        self, copies: Copies[Loaded], inputs: Inputs, measured: RowMetrics, answered: Counter[str]
    ) -> Iterator[dict[str, Any]]:
        """Generate an answer for every row, yield the rows to write, and update `measured` and `answered`."""
        examples, to_answer = tee(inputs.prompts())
        answers: Iterable[Generation | None] = repeat(None, len(inputs.rows))
        if self.max_new_tokens:
            generations = generate(
                with_own_attention(copies),
                inputs.tokenizer,
                (prompt for _, prompt in to_answer),
                len(inputs.rows),
                Sampling(self.max_new_tokens),
                batch_tokens=self.batch_tokens,
                title=f"Answers, {inputs.name}",
            )
            answers = in_order(generations)
        for i, ((example, prompt), answer) in enumerate(zip(examples, answers, strict=True)):
            row, reference = inputs.rows[i], example.last_answer()
            measured.response_bytes[i] = response_bytes(example, inputs.tokens, row, inputs.tokenizer)
            written = {
                "id": inputs.tokens.ids[row].as_py(),
                "prompt": prompt.text,
                "reference": reference,
                "nll": measured.nll[i] / measured.tokens[i] if measured.tokens[i] else None,
                "tokens": measured.tokens[i],
            }
            if answer is not None:
                measured.exact_match[i] = exact_match(answer.text, reference)
                measured.rouge_l[i] = rouge_l(answer.text, reference)
                answered.update(answer_counts([answer]))
                written |= {"output": answer.text, "output_tokens": answer.tokens, "stopped": answer.stopped}
                written |= {"exact_match": bool(measured.exact_match[i]), "rouge_l": measured.rouge_l[i]}
            yield written


def _without_answers(inputs: Inputs, nll: NDArray[np.float64], text_nll: NDArray[np.float64]) -> RowMetrics:
    """Return the metrics that are known before answers are generated; `_answer` sets the others, which are 0 here."""
    rows, tokenizer = inputs.rows, tokenizer_hash(inputs.tokenizer)
    return RowMetrics(
        nll=nll[rows],
        text_nll=text_nll[rows],
        tokens=inputs.tokens.response_tokens[rows].astype(np.int64),
        labels=np.array([hash((tokenizer, _labels(inputs.tokens, row).tobytes())) for row in rows]),
        response_bytes=np.zeros(len(rows), np.int64),
        exact_match=np.zeros(len(rows)),
        rouge_l=np.zeros(len(rows)),
    )


def _labels(tokens: Tokens, i: int) -> NDArray[np.int32]:
    """The supervised tokens of row i."""
    return tokens.input_ids(i)[tokens.supervised(i)]


def response_bytes(example: Example, tokens: Tokens, i: int, tokenizer: Any) -> int:
    """Count the UTF-8 bytes of the supervised assistant turns in row i.

    If the row is truncated, or the template writes more than their contents, such as tool calls or reasoning, the bytes
    are those of the row's supervised tokens.
    """
    if tokens.response_tokens[i] == 0:
        return 0
    answers = [turn for turn in example.turns if turn.role == "assistant" and turn.supervised]
    whole = sum(len(turn.content.encode()) for turn in answers)
    more_than_content = any(turn.fields for turn in answers)
    if not tokens.truncated[i] and not more_than_content:
        return whole
    written = len(tokenizer.decode(_labels(tokens, i).tolist(), skip_special_tokens=True).encode())
    return written if more_than_content else min(whole, written)
