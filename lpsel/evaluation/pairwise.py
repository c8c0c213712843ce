"""Models against a baseline: answers to the same prompts, a judge's verdicts on them, win rates with intervals."""

import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpsel.errors import UserError, is_int
from lpsel.evaluation.evaluator import Candidates, Place, check_seed
from lpsel.evaluation.imported import Judged, aligned, read_judgements
from lpsel.evaluation.preferences import judges_agreement
from lpsel.evaluation.tables import pairwise_table
from lpsel.evaluation.win_rate import TIE
from lpsel.generation.answers import answers, check
from lpsel.generation.prompts import Prompt, load_prompts
from lpsel.generation.sampling import Generation, Sampling
from lpsel.judging.human import HumanJudge
from lpsel.judging.judge import Judge, Judgement, Pair
from lpsel.judging.judge_pairs import judge_pairs
from lpsel.storage import distinct, file_names, finite, write_atomically, write_lines

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

JUDGEMENTS = "judgements.parquet"
NUMBERS = {"preference": "float64", "model_chars": "float64", "baseline_chars": "float64"}
COUNTS = ("prompt_tokens", "completion_tokens", "attempts")
GENERATIONS = "generations"


@dataclass(frozen=True)
class PairwiseEvaluator:
    """Asks a judge which of two answers to the same prompt is better, in both orders.

    Attributes:
        judge: who says which answer is better; people get a page to vote on.
        prompts: names of prompt sets, files or Hub ids.
        prompts_dir: a folder in which names of prompt sets are looked for first.
        limit: at most so many prompts of each set.
        judgements: a file of verdicts to use in place of prompts, models and judge, or several.
        max_new_tokens, temperature, top_p: of the answers, see `Sampling`.
        batch_tokens: largest batch, in tokens with padding; changes speed and memory.
        resamples: of the prompts, for the intervals.
        seed: of the samples and the resamples.
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

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "resamples"):
            value = getattr(self, name)
            if not is_int(value) or value < 1:
                raise UserError(f"evaluator.{name}={value}: must be a whole number, at least 1.")
        check_seed(self.seed)
        self._sampling()

    def _sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed)

    def check(self, candidates: Candidates) -> None:
        """See that there are verdicts, or two models and prompts to compare them on."""
        if self.judgements is not None:
            return
        if not candidates.models or candidates.baseline is None:
            raise UserError("evaluator=pairwise: needs two to compare; say model=RUN_OR_MODEL baseline=RUN_OR_MODEL.")
        if self.prompts is None:
            raise UserError("prompts: none given; say prompts=NAME_OR_FILE, as in prompts=koala or prompts=my.jsonl.")

    def evaluate(self, candidates: Candidates, place: Place) -> dict[str, Any]:
        """Generate, judge, count.

        The run folder gets generations/NAME.jsonl for every model and the baseline, and judgements.parquet, a row for
        every verdict; with judge=human a page to vote on and its key instead. Answers and verdicts are kept in the
        cache as they come, so that the same command goes on where it was stopped.

        Returns:
            For one model, its figures against the baseline (docs/guides/win-rates.md); for several, a list `models` and
            the figures of the first; for people, the location of their page.

        Raises:
            UserError: what can be wrong with prompts, models or judge, before an answer is generated.
        """
        if self.judgements is not None:
            return self._imported(place.folder)
        self.check(candidates)
        assert self.prompts is not None
        folder = None if self.prompts_dir is None else Path(self.prompts_dir).expanduser()
        prompts = load_prompts(self.prompts, self.limit, cache_dir=place.cache_dir, folder=folder)
        sampling = self._sampling()
        kept: dict[str, Any] = {"cache_dir": place.cache_dir, "dtype": place.dtype}
        if sum([check(model, prompts, sampling, **kept) for model in candidates.all]):
            self.judge.check(prompts)  # before answers are paid for that could not be judged

        shutil.rmtree(place.folder / GENERATIONS, ignore_errors=True)  # of an earlier run in the same folder
        names = distinct([model.name for model in candidates.all])
        written, about = [], []
        for name, file, model in zip(names, file_names(names), candidates.all, strict=True):
            of_model, ledger = answers(
                model,
                prompts,
                sampling,
                device=place.device,
                batch_tokens=self.batch_tokens,
                **kept,
            )
            path = Path(GENERATIONS) / f"{file}.jsonl"
            write_lines(place.folder / path, _lines(prompts, of_model))
            written.append(of_model)
            about.append({**ledger, "name": name, "generations": path.as_posix()})
        pairs = [_pairs(prompts, written[0], of_model) for of_model in written[1:]]
        common = {
            "evaluator": "pairwise",
            "baseline": names[0],
            "prompts": list(dict.fromkeys(prompt.prompt_set for prompt in prompts)),
            "n_prompts": len(prompts),
            "sampling": sampling.settings(),
            "answers": about,
        }
        if isinstance(self.judge, HumanJudge):
            return finite({**common, **self._pages(pairs, names, place.folder)})
        return finite({**common, **self._judged(self.judge, pairs, names, place.folder, place.cache_dir)})

    def table(self, result: dict[str, Any]) -> "Table":
        """Win rates of the models against the baseline."""
        return pairwise_table(result)

    def _pages(self, pairs: Sequence[Sequence[Pair]], names: Sequence[str], folder: Path) -> dict[str, Any]:
        assert isinstance(self.judge, HumanJudge)
        pages = []
        for name, file, of_model in zip(names[1:], file_names(names[1:]), pairs, strict=True):
            where = folder if len(pairs) == 1 else folder / "votes" / file
            where.mkdir(parents=True, exist_ok=True)
            page, key = self.judge.write(of_model, where, baseline=names[0], model=name)
            log.info("People vote on %s; then: lpsel votes FILE... --key %s", page, key)
            pages.append({"name": name, "page": page, "key": key})
        return {"judge": {"kind": "people"}, "models": pages, "page": pages[0]["page"], "key": pages[0]["key"]}

    def _judged(
        self, judge: Judge, pairs: Sequence[Sequence[Pair]], names: Sequence[str], folder: Path, cache_dir: Path
    ) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        figures_of, ledgers = {}, {}
        for name, of_model in zip(names[1:], pairs, strict=True):
            judgements, ledgers[name] = judge_pairs(judge, of_model, cache_dir)
            rows += _rows(name, names[0], judge.name, of_model, judgements)
            _write_table(folder / JUDGEMENTS, rows)
            orders = len(judge.orders)
            preferences = np.array([judgement.preference for judgement in judgements], dtype=np.float64)
            figures_of[name] = pairwise_metrics(
                preferences.reshape(-1, orders),
                model_chars_N=[len(pair.model) for pair in of_model],
                baseline_chars_N=[len(pair.baseline) for pair in of_model],
                category_N=[pair.category for pair in of_model],
                prompt_set_N=[pair.prompt_set for pair in of_model],
                resamples=self.resamples,
                seed=self.seed,
            )
        models = [
            {"name": name, **of_model, "judging": ledgers[name]}
            for name, of_model in adjust_p_values(figures_of).items()
        ]
        costs = [ledger["cost"] for ledger in ledgers.values() if ledger["cost"] is not None]
        return {
            **models[0],
            "judge": judge.identity() | {"name": judge.name},
            "cost": sum(costs) if costs else None,
            "models": models,
            "judgements": folder / JUDGEMENTS,
        }

    def _imported(self, folder: Path) -> dict[str, Any]:
        assert self.judgements is not None
        judged = read_judgements(self.judgements)
        files = self.judgements if isinstance(self.judgements, list) else [self.judgements]
        names = distinct([", ".join(filter(None, (each.model or "model", each.judge))) for each in judged])
        figures_of = {
            name: pairwise_metrics(
                each.preference_NO,
                model_chars_N=each.model_chars_N,
                baseline_chars_N=each.baseline_chars_N,
                category_N=each.category_N,
                prompt_set_N=each.prompt_set_N,
                resamples=self.resamples,
                seed=self.seed,
            )
            for name, each in zip(names, judged, strict=True)
        }
        _write_table(folder / JUDGEMENTS, [row for each in judged for row in _imported_rows(each)])
        judges = list(dict.fromkeys(each.judge for each in judged))
        compared: dict[str, dict[str, Any]] = {}
        for judge in judges:  # as many tests as models; a second judge is no further model
            compared |= adjust_p_values(
                {n: figures_of[n] for n, each in zip(names, judged, strict=True) if each.judge == judge}
            )
        models = [{"name": name, **compared[name]} for name in names]
        return finite(
            {
                "evaluator": "pairwise",
                "baseline": judged[0].baseline or "baseline",
                **models[0],
                "judge": {"kind": "imported", "name": ", ".join(filter(None, judges)) or None},
                "imported": [Path(file).expanduser().resolve() for file in files],
                "models": models,
                "judges": _between_judges(judged),
                "judgements": folder / JUDGEMENTS,
            }
        )


def _pairs(prompts: Sequence[Prompt], baseline: Sequence[Generation], model: Sequence[Generation]) -> list[Pair]:
    return [
        Pair(
            id=prompt.id,
            prompt=prompt.text,
            baseline=before.text,
            model=after.text,
            prompt_set=prompt.prompt_set,
            category=prompt.category,
            reference=prompt.reference,
        )
        for prompt, before, after in zip(prompts, baseline, model, strict=True)
    ]


def _lines(prompts: Sequence[Prompt], written: Sequence[Generation]) -> Iterator[dict[str, Any]]:
    for prompt, answer in zip(prompts, written, strict=True):
        yield {
            "id": prompt.id,
            "prompt_set": prompt.prompt_set,
            "category": prompt.category,
            "prompt": prompt.text,
            "output": answer.text,
            "output_tokens": answer.tokens,
            "stopped": answer.stopped,
        }


def _rows(
    model: str, baseline: str, judge: str, pairs: Sequence[Pair], judgements: Sequence[Judgement]
) -> Iterator[dict[str, Any]]:
    """Of judgements.parquet: what `read_judgements` reads, and what the judge wrote."""
    of_id = {pair.id: pair for pair in pairs}
    for said in judgements:
        pair = of_id[said.id]
        yield {
            "id": said.id,
            "prompt_set": pair.prompt_set,
            "category": pair.category,
            "model": model,
            "baseline": baseline,
            "judge": judge,
            "order": said.order,
            "verdict": _verdict(said.preference),
            "preference": said.preference,
            "raw": said.raw,
            "failure": said.failure,
            "prompt_tokens": said.prompt_tokens,
            "completion_tokens": said.completion_tokens,
            "attempts": said.attempts,
            "model_chars": len(pair.model),
            "baseline_chars": len(pair.baseline),
        }


def _imported_rows(judged: Judged) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(judged.ids):
        for order, preference in zip(judged.orders, judged.preference_NO[i].tolist(), strict=True):
            said = None if math.isnan(preference) else preference
            yield {
                "id": name,
                "prompt_set": judged.prompt_set_N[i],
                "category": judged.category_N[i],
                "model": judged.model,
                "baseline": judged.baseline,
                "judge": judged.judge,
                "order": order,
                "verdict": _verdict(said),
                "preference": said,
                "model_chars": judged.model_chars_N[i],
                "baseline_chars": judged.baseline_chars_N[i],
            }


def _between_judges(judged: Sequence[Judged]) -> dict[str, Any]:
    """Agreement of the judges of each model that has several."""
    by_model = {model: [each for each in judged if each.model == model] for model in {each.model for each in judged}}
    return {model: judges_agreement(aligned(each)) for model, each in by_model.items() if len(each) > 1}


def _verdict(preference: float | None) -> str | None:
    """The model's: win, tie or loss."""
    return None if preference is None else "win" if preference > TIE else "loss" if preference < TIE else "tie"


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {**NUMBERS, **dict.fromkeys(COUNTS, "int64")}
    schema = pa.schema([(name, types.get(name, "string")) for name in rows[0]])
    table = pa.Table.from_pylist(finite(list(rows)), schema=schema)
    write_atomically(path, lambda file: pq.write_table(table, file))
