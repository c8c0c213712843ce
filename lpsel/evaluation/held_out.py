"""Models side by side on held-out rows: likelihood of the reference responses, and how close the answers are."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpsel.data.column_forms import Example
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.templates import Rendered, render_prompt
from lpsel.data.tokens import Tokens, tokenize, tokenizer_hash
from lpsel.errors import check_int
from lpsel.evaluation.evaluator import GENERATIONS, Candidates, EvaluationContext
from lpsel.evaluation.held_out_metrics import RowMetrics, compare, reference_nll, response_bytes
from lpsel.evaluation.statistics import UNDEFINED
from lpsel.evaluation.tables import reference_table
from lpsel.generation.generate import generate, prompt_room
from lpsel.generation.sampling import Generation, Sampling
from lpsel.generation.text_metrics import exact_match, rouge_l
from lpsel.model.device import free_memory, reuse_freed_memory
from lpsel.model.load import load_config, load_model, load_tokenizer, locate
from lpsel.model.loss import PerSampleLoss, check_head
from lpsel.model.memory_estimate import recording_pack
from lpsel.model.spec import ModelSpec
from lpsel.storage import distinct, file_names, finite, write_lines
from lpsel.training.monitors import check_vocabulary

log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What a model is evaluated on, prepared before any model is loaded."""

    name: str
    file: str
    spec: ModelSpec
    path: str
    tokenizer: Any
    tokens: Tokens
    prompts: list[Rendered]


@dataclass(frozen=True)
class ReferenceEvaluator:
    """Compares models with the reference responses of held-out rows.

    - `nll`: mean negative log-likelihood per supervised token, in nats, over all tokens of all rows (a long response
      has more weight); `perplexity` is exp(nll). Neither is comparable between tokenizers.
    - `bits_per_byte`: the same likelihood in bits per UTF-8 byte of the response text; comparable between tokenizers.
    - `exact_match`: fraction of greedy answers equal to the reference, except for surrounding whitespace.
    - `rouge_l`: mean ROUGE-L F1 of the greedy answers.

    In a chat, all turns of the assistant count for the likelihood, and the last one is generated. Without a reference,
    an empty answer is expected. Every metric has a 95 % percentile bootstrap interval over rows, and the differences to
    the first model, the baseline, are paired. An interval without width (no exact match in any row) does not mean that
    the value is certain.

    Attributes:
        dataset: the held-out rows.
        max_new_tokens: longest greedy answer.
        batch_tokens: largest batch, in tokens with padding; changes speed and memory, not float32 results.
        resamples: number of bootstrap resamples of the rows.
        seed: of the resamples.
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
        Sampling(self.max_new_tokens, seed=self.seed)  # checks them

    def check(self, candidates: Candidates) -> None:
        """Raise a UserError unless there are models, all of them local."""
        candidates.local()

    def evaluate(self, candidates: Candidates, context: EvaluationContext) -> dict[str, Any]:
        """Evaluate the models one after the other, freeing each before the next is loaded.

        Writes generations/NAME.jsonl for every model as soon as it is done.

        Returns:
            `models` in their order, each with `metrics` and `difference` (None for the first) of `value`, `low` and
            `high`; None where a value is not defined. The difference in NLL is None if the tokenizers differ.

        Raises:
            UserError: no rows, a missing model, a template that does not fit, a context without room for a prompt,
                before any model is loaded; an unsupported architecture.
        """
        source = Source(self.dataset)
        examples = [row.example for row in source]
        inputs = self._prepare(candidates.local(), source, examples, context.cache_dir)
        shutil.rmtree(context.folder / GENERATIONS, ignore_errors=True)  # of an earlier run in the same folder
        measured, reports = [], []
        for i, model in enumerate(inputs, start=1):
            of_model, report = self._evaluate_model(model, examples, context)
            measured.append(of_model)
            reports.append(report)
            if len(inputs) > 2:
                log.info("Evaluated %s (%d of %d)", model.name, i, len(inputs))
            free_memory()
        metrics = compare(measured, self.resamples, self.seed)
        for report, compared in zip(reports[1:], metrics[1:], strict=True):
            if report["tokenizer"] != reports[0]["tokenizer"]:
                compared["difference"]["nll"] = UNDEFINED._asdict()
        return finite(
            {
                "evaluator": "reference",
                "dataset": source.spec.name,
                "n": len(examples),
                "data_fingerprint": source.fingerprint,
                "baseline": inputs[0].name,
                "max_new_tokens": self.max_new_tokens,
                "resamples": self.resamples,
                "seed": self.seed,
                "models": [{**report, **compared} for report, compared in zip(reports, metrics, strict=True)],
            }
        )

    def _prepare(
        self, specs: list[ModelSpec], source: Source, examples: list[Example], cache_dir: Path
    ) -> list[Inputs]:
        inputs = []
        names = [spec.name for spec in specs]
        paths = [locate(spec, cache_dir) for spec in specs]
        for spec, path, name, file in zip(specs, paths, distinct(names), file_names(names), strict=True):
            prompt_room(load_config(spec, path), self.max_new_tokens)
            tokenizer = load_tokenizer(spec, path)
            tokens = tokenize(source, tokenizer, spec.template, spec.max_length, cache_dir)
            check_vocabulary(tokens, tokenizer, spec, path)
            prompts = [render_prompt(example, spec.template, tokenizer) for example in examples]
            inputs.append(Inputs(name, f"{GENERATIONS}/{file}.jsonl", spec, path, tokenizer, tokens, prompts))
        return inputs

    def _evaluate_model(
        self, inputs: Inputs, examples: list[Example], context: EvaluationContext
    ) -> tuple[RowMetrics, dict[str, Any]]:
        nll, answers, seconds = self._run_model(inputs, context)
        references = [reference_of(example) for example in examples]
        pairs = list(zip((answer.text for answer in answers), references, strict=True))
        tokens, tokenizer = inputs.tokens, inputs.tokenizer
        measured = RowMetrics(
            nll=nll,
            tokens=tokens.response_tokens.astype(np.int64),
            response_bytes=np.array([response_bytes(e, tokens, i, tokenizer) for i, e in enumerate(examples)]),
            exact_match=np.array([exact_match(*pair) for pair in pairs], dtype=np.float64),
            rouge_l=np.array([rouge_l(*pair) for pair in pairs]),
        )
        report = _report(inputs, measured, answers) | {"seconds": seconds, "generations": inputs.file}
        if report["rows_not_finite"]:
            log.warning(
                "%s: NLL is not defined because it is NaN or Inf in %d rows", inputs.name, report["rows_not_finite"]
            )
        rows = (_generation_row(inputs, measured, answers, references, i) for i in range(len(examples)))
        write_lines(context.folder / inputs.file, rows)
        return measured, report

    def _run_model(
        self, inputs: Inputs, context: EvaluationContext
    ) -> tuple[NDArray[np.float64], list[Generation], dict[str, float]]:
        """NLL of the references, greedy answers, and seconds spent on each."""
        started = time.perf_counter()
        device, dtype = context.device, context.dtype
        if device.type == "cpu":
            reuse_freed_memory()
        model = load_model(inputs.spec, inputs.path, dtype).to(device)
        loss = PerSampleLoss(model)
        check_head(loss)
        loaded = time.perf_counter()
        precision = "32-true" if str(dtype) == "torch.float32" else "bf16-true"
        largest = recording_pack(model.config, precision, self.batch_tokens, device.type)
        nll = reference_nll(loss, inputs.tokens, largest, f"References, {inputs.name}")
        loss.release()
        scored = time.perf_counter()
        answers = generate(
            model,
            inputs.tokenizer,
            inputs.prompts,
            Sampling(self.max_new_tokens),
            batch_tokens=self.batch_tokens,
            title=f"Answers, {inputs.name}",
        )
        seconds = {"load": loaded - started, "nll": scored - loaded, "generate": time.perf_counter() - scored}
        return nll, answers, {step: round(value, 3) for step, value in seconds.items()}


def reference_of(example: Example) -> str:
    """The last turn of the assistant; empty if there is none."""
    return next((turn.content for turn in reversed(example.turns) if turn.role == "assistant"), "")


def _generation_row(
    inputs: Inputs, measured: RowMetrics, answers: list[Generation], references: list[str], i: int
) -> dict[str, Any]:
    return {
        "id": inputs.tokens.ids[i].as_py(),
        "prompt": inputs.prompts[i].text,
        "output": answers[i].text,
        "reference": references[i],
        "exact_match": bool(measured.exact_match[i]),
        "rouge_l": measured.rouge_l[i],
        "nll": measured.nll[i] / measured.tokens[i] if measured.tokens[i] else None,
        "tokens": measured.tokens[i],
        "output_tokens": answers[i].tokens,
        "stopped": answers[i].stopped,
    }


def _report(inputs: Inputs, measured: RowMetrics, answers: list[Generation]) -> dict[str, Any]:
    return {
        "name": inputs.name,
        "model": inputs.path,
        "template": inputs.spec.template,
        "max_length": inputs.spec.max_length,
        "tokenizer": tokenizer_hash(inputs.tokenizer),
        "rows": len(answers),
        "rows_without_supervised_tokens": inputs.tokens.n_unsupervised,
        "rows_truncated": inputs.tokens.n_truncated,
        "rows_not_finite": int((~np.isfinite(measured.nll)).sum()),
        "supervised_tokens": int(measured.tokens.sum()),
        "response_bytes": int(measured.response_bytes.sum()),
        "prompts_cut": sum(answer.prompt_cut > 0 for answer in answers),
        "answers_cut": sum(not answer.stopped for answer in answers),
        "answers_empty": sum(not answer.text.strip() for answer in answers),
        "generated_tokens": sum(answer.tokens or 0 for answer in answers),
    }
