"""Models side by side on held-out rows: how likely the reference responses are, and how like them the answers are."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lpsel.data.dataset import DatasetSpec, Example, Source
from lpsel.errors import UserError, is_int
from lpsel.evaluation.comparison import Measured, compare
from lpsel.evaluation.evaluator import Candidates, Place, check_seed
from lpsel.evaluation.statistics import UNDEFINED
from lpsel.evaluation.tables import reference_table
from lpsel.generation.text_metrics import exact_match, rouge_l
from lpsel.model.device import free_memory
from lpsel.model.load import load_config, load_model, load_tokenizer, locate
from lpsel.model.spec import ModelSpec
from lpsel.storage import distinct, file_names, finite, write_lines

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from lpsel.data.templates import Rendered
    from lpsel.data.tokens import Tokens

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """What can be made of a model's tokenizer alone, so that mistakes show before any model is loaded."""

    name: str
    spec: ModelSpec
    path: str
    tokenizer: Any
    tokens: "Tokens"
    prompts: "list[Rendered]"


@dataclass(frozen=True)
class ReferenceEvaluator:
    """Compares models with the reference responses of held-out rows.

    - `nll`: mean negative log-likelihood per supervised token, in nats, over all tokens of all rows (a long response
      counts for more); `perplexity` is exp of it. A token is what the model's own tokenizer makes of the text, so
      neither can be compared between models with different tokenizers.
    - `bits_per_byte`: the same likelihood in bits per UTF-8 byte of the response text. Comparable between tokenizers.
    - `exact_match`: share of greedy answers that are the reference, white space around them aside.
    - `rouge_l`: mean ROUGE-L F1 of the greedy answers.

    In a chat all turns of the assistant count for the likelihood, and the last one is generated. A row without a
    reference expects an empty answer. Every figure has a 95 % percentile bootstrap interval over rows; the difference
    of a model to the first, the baseline, is resampled in pairs. The bootstrap knows only the rows there are: where
    all agree (no exact match at all), the interval has no width, which is no certainty.

    Attributes:
        dataset: the held-out rows.
        max_new_tokens: a greedy answer is cut here.
        batch_tokens: largest batch, in tokens with padding; changes speed and memory, not float32 results.
        resamples: of the rows, for the intervals.
        seed: of the resamples.
    """

    dataset: DatasetSpec
    max_new_tokens: int = 256
    batch_tokens: int = 16_384
    resamples: int = 10_000
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_tokens", "resamples"):
            value = getattr(self, name)
            if not is_int(value) or value < 1:
                raise UserError(f"evaluator.{name}={value}: must be a whole number, at least 1.")
        check_seed(self.seed)

    def check(self, candidates: Candidates) -> None:
        """See that there are models, all on this machine."""
        candidates.on_this_machine()

    def evaluate(self, candidates: Candidates, place: Place) -> dict[str, Any]:
        """Measure the models one after the other, each freed before the next is loaded.

        The run folder gets generations/NAME.jsonl for every model, as soon as it is done; names are made distinct and
        safe. Without a baseline the first model is it.

        Returns:
            Plain numbers, strings, lists and dictionaries, None where a figure is not defined; `models` in their order,
            each with `metrics` and `difference` (None for the baseline) of `value`, `low` and `high`. The difference
            in NLL is None where the tokenizers differ.

        Raises:
            UserError: no rows (the source says so), a model that is not there, a template that does not fit, no room
                for a prompt in a model's context: before any model is loaded. An unsupported architecture.
        """
        models, cache_dir, folder = candidates.on_this_machine(), place.cache_dir, place.folder
        source = Source(self.dataset)
        examples = [row.example for row in source]
        paths = [locate(spec, cache_dir) for spec in models]
        names = distinct([spec.name for spec in models])
        files = [Path("generations") / f"{name}.jsonl" for name in file_names([spec.name for spec in models])]
        prepared = [
            self._prepare(name, spec, path, source, examples, cache_dir)
            for name, spec, path in zip(names, models, paths, strict=True)
        ]
        shutil.rmtree(folder / "generations", ignore_errors=True)  # of an earlier run in the same folder
        measured, described = [], []
        for model, file in zip(prepared, files, strict=True):
            of_rows, about = self._measure(model, examples, folder / file, place.device, place.dtype)
            measured.append(of_rows)
            described.append({**about, "generations": file.as_posix()})
            if len(prepared) > 2:
                log.info("Evaluated %s (%d of %d)", model.name, len(measured), len(prepared))
            free_memory()
        figures = compare(measured, self.resamples, self.seed)
        for about, figure in zip(described[1:], figures[1:], strict=True):
            if about["tokenizer"] != described[0]["tokenizer"]:
                figure["difference"]["nll"] = UNDEFINED._asdict()
        return finite(
            {
                "evaluator": "reference",
                "dataset": source.spec.name,
                "n": len(examples),
                "data_fingerprint": source.fingerprint,
                "baseline": names[0],
                "max_new_tokens": self.max_new_tokens,
                "resamples": self.resamples,
                "seed": self.seed,
                "models": [{**about, **figure} for about, figure in zip(described, figures, strict=True)],
            }
        )

    def table(self, result: dict[str, Any]) -> "Table":
        """The models side by side."""
        return reference_table(result)

    def _prepare(
        self, name: str, spec: ModelSpec, path: str, source: Source, examples: list[Example], cache_dir: Path
    ) -> Prepared:
        from lpsel.data.templates import render_prompt
        from lpsel.data.tokens import tokenize
        from lpsel.generation.generate import prompt_room
        from lpsel.training.monitors import check_vocabulary

        prompt_room(load_config(spec, path), self.max_new_tokens)
        tokenizer = load_tokenizer(spec, path)
        tokens = tokenize(source, tokenizer, spec.template, spec.max_length, cache_dir)
        check_vocabulary(tokens, tokenizer, spec, path)
        prompts = [render_prompt(example, spec.template, tokenizer) for example in examples]
        return Prepared(name, spec, path, tokenizer, tokens, prompts)

    def _measure(
        self,
        prepared: Prepared,
        examples: list[Example],
        file: Path,
        device: "torch.device",
        dtype: "torch.dtype",
    ) -> tuple[Measured, dict[str, Any]]:
        from lpsel.data.tokens import tokenizer_hash
        from lpsel.evaluation.likelihood import reference_nll, response_bytes
        from lpsel.generation.generate import generate
        from lpsel.generation.sampling import Sampling
        from lpsel.model.device import reuse_freed_memory
        from lpsel.model.loss import PerSampleLoss, check_head
        from lpsel.model.memory_estimate import recording_pack

        name, spec, path, tokenizer, tokens, prompts = prepared
        started = time.perf_counter()
        if device.type == "cpu":
            reuse_freed_memory()
        model = load_model(spec, path, dtype).to(device)
        loss = PerSampleLoss(model)
        check_head(loss)
        loaded = time.perf_counter()
        precision = "32-true" if str(dtype) == "torch.float32" else "bf16-true"
        largest = recording_pack(model.config, precision, self.batch_tokens, device.type)
        nll = reference_nll(loss, tokens, largest, f"References, {name}")
        loss.release()
        scored = time.perf_counter()
        answers = generate(
            model,
            tokenizer,
            prompts,
            Sampling(self.max_new_tokens),
            batch_tokens=self.batch_tokens,
            title=f"Answers, {name}",
        )
        done = time.perf_counter()

        references = [reference_of(example) for example in examples]
        pairs = list(zip((answer.text for answer in answers), references, strict=True))
        measured = Measured(
            nll=nll,
            tokens=tokens.response_tokens.astype(np.int64),
            response_bytes=np.array([response_bytes(e, tokens, i, tokenizer) for i, e in enumerate(examples)]),
            exact_match=np.array([exact_match(*pair) for pair in pairs], dtype=np.float64),
            rouge_l=np.array([rouge_l(*pair) for pair in pairs]),
        )
        not_finite = int((~np.isfinite(nll)).sum())
        if not_finite:
            log.warning("%s: the NLL of %d rows is not finite, so its NLL is not defined.", name, not_finite)
        write_lines(
            file,
            (
                {
                    "id": tokens.ids[i].as_py(),
                    "prompt": prompts[i].text,
                    "output": answers[i].text,
                    "reference": references[i],
                    "exact_match": bool(measured.exact_match[i]),
                    "rouge_l": measured.rouge_l[i],
                    "nll": nll[i] / measured.tokens[i] if measured.tokens[i] else None,
                    "tokens": measured.tokens[i],
                    "output_tokens": answers[i].tokens,
                    "stopped": answers[i].stopped,
                }
                for i in range(len(examples))
            ),
        )
        return measured, {
            "name": name,
            "model": path,
            "template": spec.template,
            "max_length": spec.max_length,
            "tokenizer": tokenizer_hash(tokenizer),
            "rows": len(examples),
            "rows_without_supervised_tokens": tokens.n_unsupervised,
            "rows_truncated": tokens.n_truncated,
            "rows_not_finite": not_finite,
            "supervised_tokens": int(measured.tokens.sum()),
            "response_bytes": int(measured.response_bytes.sum()),
            "prompts_cut": sum(answer.prompt_cut > 0 for answer in answers),
            "answers_cut": sum(not answer.stopped for answer in answers),
            "answers_empty": sum(not answer.text.strip() for answer in answers),
            "generated_tokens": sum(answer.tokens or 0 for answer in answers),
            "seconds": {
                "load": round(loaded - started, 3),
                "nll": round(scored - loaded, 3),
                "generate": round(done - scored, 3),
            },
        }


def reference_of(example: Example) -> str:
    """The last turn of the assistant; empty where there is none."""
    return next((turn.content for turn in reversed(example.turns) if turn.role == "assistant"), "")
