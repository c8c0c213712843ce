"""Compare models with a baseline: generate answers to the same prompts, judge them, and compute win rates."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpsel.data.content_ids import listed
from lpsel.errors import UserError, check_choice, check_int, skipped
from lpsel.evaluation.comparison import compare
from lpsel.evaluation.evaluator import Candidates, EvaluationContext, generation_files
from lpsel.evaluation.imported import read_judgements
from lpsel.evaluation.judgements import JUDGEMENTS, Row, Verdicts, aligned, group, judges_agreement, write_judgements
from lpsel.evaluation.tables import pairwise_table
from lpsel.generation.answers import answers, check, rejections
from lpsel.generation.prompts import Prompt, find_sets, load_prompts
from lpsel.generation.sampling import Generation, Sampling
from lpsel.judging.human import HumanJudge
from lpsel.judging.judge import Judge, Judgement, Pair, judge_pairs, question_key, sum_known
from lpsel.storage import digest, distinct, file_names, finite, write_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairwiseEvaluator:
    """Asks a judge which of two answers to the same prompt is better, in both orders.

    Attributes:
        judge: compares the answers; for human judges, a voting page is written.
        prompts: names of prompt sets, files or Hub ids.
        prompts_dir: folder in which names of prompt sets are looked up first.
        limit: maximum number of prompts per set.
        judgements: one or several files of verdicts to use instead of prompts, models and judge.
        max_new_tokens, temperature, top_p: sampling settings, see `Sampling`.
        batch_tokens: largest batch, in tokens with padding; changes speed and memory.
        resamples: number of bootstrap resamples of the prompts.
        seed: seed for sampling answers and for the bootstrap.
        bad_rows: `skip` to leave out unusable prompts, for all models if the template of one rejects them.
    """

    judge: Judge | HumanJudge
    prompts: str | list[str] | None = None
    prompts_dir: str | None = None
    limit: int | None = None
    judgements: str | list[str] | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    batch_tokens: int = 16_384
    resamples: int = 10_000
    seed: int = 42
    bad_rows: str = "error"

    table = staticmethod(pairwise_table)

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "resamples"):
            check_int(f"evaluator.{name}", getattr(self, name), 1)
        check_choice("dataset.bad_rows", self.bad_rows, ("error", "skip"))
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed)

    @property
    def _prompts_folder(self) -> Path | None:
        return None if self.prompts_dir is None else Path(self.prompts_dir).expanduser()

    def check(self, candidates: Candidates) -> None:
        """Raise a UserError unless there are verdicts, or a model, a baseline and prompts."""
        if self.judgements is not None:
            return
        if not candidates.models or candidates.baseline is None:
            missing = "model" if candidates.baseline is not None else "baseline"
            hint = "set model=RUN_OR_MODEL baseline=RUN_OR_MODEL"
            raise UserError(missing, "null", "evaluator=pairwise compares a model with a baseline", hint)
        if self.prompts is None:
            raise UserError("prompts", "null", "no prompts to answer", "set prompts=koala or prompts=FILE")
        find_sets(self.prompts, self._prompts_folder)

    def evaluate(self, candidates: Candidates, context: EvaluationContext) -> dict[str, Any]:
        """Generate and judge answers, and compute win rates (docs/reference/metrics.md).

        Writes generations/NAME.jsonl for every model and the baseline, and judgements.parquet with a row per verdict,
        or a voting page and its key if judge=human. Answers and verdicts are cached as they arrive.

        Returns:
            The metrics of the first model, and of all models in `models`; for human judges, the paths of the pages.

        Raises:
            UserError: prompts, models or judge are not usable; raised before any answer is generated.
        """
        if self.judgements is not None:
            return finite(self._count_imported(read_judgements(self.judgements), context.folder))
        prompts, unusable = self._prompts(candidates, context.cache_dir)
        names = distinct([model.name for model in candidates.all])
        generations, reports = self._generate(candidates, names, prompts, context)
        baseline_answers = generations[0]
        pairs = {
            name: list(map(_pair, prompts, baseline_answers, model_answers))
            for name, model_answers in zip(names[1:], generations[1:], strict=True)
        }
        if isinstance(self.judge, HumanJudge):
            judged = _write_pages(self.judge, pairs, names[0], context.folder)
        else:
            judged = self._judge(self.judge, pairs, reports, context)
        return finite(
            {
                "evaluator": "pairwise",
                "baseline": names[0],
                "prompts": list(dict.fromkeys(prompt.prompt_set for prompt in prompts)),
                "n_prompts": len(prompts),
                "prompts_fingerprint": digest([prompt.text for prompt in prompts]),
                "rows_unusable": dict(unusable.most_common()),
                "sampling": self.sampling.settings(),
                "answers": reports,
                **judged,
            }
        )

    def read_prompts(self, cache_dir: Path) -> tuple[list[Prompt], Counter[str]]:
        """Return the prompts and the number of unusable ones by kind; raise a UserError if a set is not found."""
        assert self.prompts is not None, "checked"
        folder = self._prompts_folder
        return load_prompts(self.prompts, self.limit, cache_dir=cache_dir, folder=folder, bad_rows=self.bad_rows)

    def _prompts(self, candidates: Candidates, cache_dir: Path) -> tuple[list[Prompt], Counter[str]]:
        """Return the prompts that all models can use, and the number of unusable ones by kind."""
        prompts, unusable = self.read_prompts(cache_dir)
        for model in candidates.all:
            rejected = rejections(model, prompts, cache_dir)
            unusable.update(skipped(error, f"prompt {name}", self.bad_rows) for name, error in rejected.items())
            prompts = [prompt for prompt in prompts if prompt.id not in rejected]
        if not prompts:
            raise UserError(
                "prompts", self.prompts, f"none is usable by all models: {listed(unusable)}", "use another template"
            )
        if unusable:
            log.info("Prompts: %d are unusable and skipped: %s", unusable.total(), listed(unusable))
        return prompts, unusable

    def _generate(
        self, candidates: Candidates, names: Sequence[str], prompts: Sequence[Prompt], context: EvaluationContext
    ) -> tuple[list[list[Generation]], list[dict[str, Any]]]:
        """Return the answers of every model, baseline first, and a report on each model's answers."""
        cached: dict[str, Any] = {"cache_dir": context.cache_dir, "dtype": context.dtype}
        missing = [check(model, prompts, self.sampling, **cached) for model in candidates.all]
        if any(missing) and not isinstance(self.judge, HumanJudge):
            self.judge.check(prompts)  # before paying for answers that could not be judged
        generations, reports = [], []
        for name, file, model in zip(names, generation_files(names, context.folder), candidates.all, strict=True):
            model_answers, report = answers(
                model, prompts, self.sampling, device=context.device, batch_tokens=self.batch_tokens, **cached
            )
            write_lines(context.folder / file, map(_generation_row, prompts, model_answers))
            generations.append(model_answers)
            reports.append({**report, "name": name, "generations": file})
        return generations, reports

    def _judge(
        self, judge: Judge, pairs: dict[str, list[Pair]], answers: list[dict[str, Any]], context: EvaluationContext
    ) -> dict[str, Any]:
        verdicts, reports = {}, []
        paid: dict[tuple[str, str | None], Judgement] = {}
        for name, model_pairs in pairs.items():
            judgements, report = judge_pairs(judge, model_pairs, context.cache_dir)
            pair_of = {pair.id: pair for pair in model_pairs}
            for judgement in judgements:
                # Models with the same answer share its verdict, but a failed question is asked again for each of them.
                failed_for = name if judgement.preference is None else None
                paid[question_key(pair_of[judgement.id], judgement.order), failed_for] = judgement
            names = {"model": name, "baseline": answers[0]["name"], "judge": judge.name}
            [verdicts[name]] = group(_judged_rows(pair_of, judgements, names))
            reports.append(report)
        compared = self._compare(verdicts, context.folder, answers)
        for model, report in zip(compared["models"], reports, strict=True):
            model["judging"] = report
        return {
            **compared["models"][0],
            "judge": judge.identity() | {"name": judge.name},
            "cost": sum_known(judge.cost(j.prompt_tokens, j.completion_tokens) for j in paid.values()),
            "unanswered": sum(report["unanswered"] for report in reports),
            **compared,
            "judgements": context.folder / JUDGEMENTS,
        }

    def _count_imported(self, imported: list[Verdicts], folder: Path) -> dict[str, Any]:
        names: list[str] = []
        by_model: dict[str, list[Verdicts]] = {}
        for verdicts in imported:
            model = verdicts.model or "model"
            names.append(f"{model}, {verdicts.judge}" if verdicts.judge else model)
            by_model.setdefault(verdicts.model, []).append(verdicts)
        compared = self._compare(dict(zip(distinct(names), imported, strict=True)), folder)
        files = self.judgements if isinstance(self.judgements, list) else [self.judgements]
        judges = ", ".join(dict.fromkeys(verdicts.judge for verdicts in imported if verdicts.judge))
        return {
            "evaluator": "pairwise",
            "baseline": imported[0].baseline or "baseline",
            **compared["models"][0],
            "judge": {"kind": "imported", "name": judges or None},
            "imported": [Path(str(file)).expanduser().resolve() for file in files],
            **compared,
            "judges": {
                model: judges_agreement(aligned(by_judge)) for model, by_judge in by_model.items() if len(by_judge) > 1
            },
            "judgements": folder / JUDGEMENTS,
        }

    def _compare(
        self, verdicts: dict[str, Verdicts], folder: Path, answers: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        """Write judgements.parquet, and compute all statistics, see `compare`."""
        write_judgements(folder / JUDGEMENTS, list(verdicts.values()))
        compared = compare(verdicts, answers=answers, resamples=self.resamples, seed=self.seed)
        for sentence in compared["warnings"]:
            log.warning("%s", sentence)
        return compared


def _pair(prompt: Prompt, baseline: Generation, model: Generation) -> Pair:
    return Pair(
        id=prompt.id,
        prompt=prompt.text,
        baseline=baseline.text,
        model=model.text,
        prompt_set=prompt.prompt_set,
        category=prompt.category,
        reference=prompt.reference,
        stopped=(model.stopped, baseline.stopped),
    )


def _generation_row(prompt: Prompt, answer: Generation) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "prompt_set": prompt.prompt_set,
        "category": prompt.category,
        "prompt": prompt.text,
        "output": answer.text,
        "output_tokens": answer.tokens,
        "stopped": answer.stopped,
    }


def _write_pages(judge: HumanJudge, pairs: dict[str, list[Pair]], baseline: str, folder: Path) -> dict[str, Any]:
    """Write a voting page for every model."""
    pages = []
    for (name, model_pairs), file in zip(pairs.items(), file_names(list(pairs)), strict=True):
        page_folder = folder if len(pairs) == 1 else folder / "votes" / file
        page_folder.mkdir(parents=True, exist_ok=True)
        page, key = judge.write(model_pairs, page_folder, baseline=baseline, model=name)
        log.info("Vote on %s, then run: lpsel votes FILE... --key %s", page, key)
        pages.append({"name": name, "page": page, "key": key})
    return {"judge": {"kind": "people"}, "models": pages, "page": pages[0]["page"], "key": pages[0]["key"]}


def _judged_rows(pair_of: Mapping[str, Pair], judgements: Sequence[Judgement], names: dict[str, str]) -> Iterator[Row]:
    """Yield the rows of judgements.parquet."""
    for judgement in judgements:
        pair = pair_of[judgement.id]
        lengths = {"model_chars": len(pair.model), "baseline_chars": len(pair.baseline)}
        prompt = {"category": pair.category, "prompt_set": pair.prompt_set, "text": pair.prompt_digest}
        yield names | judgement._asdict() | lengths | prompt | {"equal": pair.equal}
