"""`lpsel validate`: measure whether a score predicts the held-out loss of a model trained on a subset.

Each subset is trained on with `train` and measured with `evaluate`. Subsets are selected by columns of one table, which
holds random numbers and the scores.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hydra import compose
from numpy.typing import NDArray
from rich.markup import escape

from lpsel import console
from lpsel.commands.agreement_inputs import Scored, read_all, score_of
from lpsel.commands.arguments import OneLineParser, run_folder
from lpsel.commands.experiment import check_merged
from lpsel.commands.job import check_required, ranks_run
from lpsel.commands.job import run as run_job
from lpsel.config import build, choice, configured
from lpsel.console import decimals
from lpsel.data.shared_source import shared_source
from lpsel.errors import UserError, check_int
from lpsel.evaluation.subset_validation import bootstrap_interval, conclusion, conclusive, rank_correlation
from lpsel.overrides import hydra_arguments
from lpsel.run_config import RESULT
from lpsel.scoring.metrics import METRICS
from lpsel.selection.budget import check_pct
from lpsel.storage import finite, write_csv, write_file, write_json

FEWEST = 5  # subsets needed for a meaningful rank correlation
TABLE = "subsets.parquet"
EVALUATION = ("evaluator.max_new_tokens=0", "evaluator.resamples=100")  # only the NLL is used, not its interval
SHARED = ("trainer", "tracker", "cache_dir")  # options that are passed to both train and evaluate

Floats = NDArray[np.float64]


class Subset(NamedTuple):
    """The `pct` % of the rows with the lowest or highest values in a column of the table."""

    name: str
    column: str
    highest: bool = False


class Settings(NamedTuple):
    """Training and evaluation of subsets; `overrides` are for train, `held_out` for evaluate."""

    overrides: Sequence[str]
    held_out: Sequence[str]
    subsets: int = 32
    pct: float = 10.0
    seeds: int = 1
    seed: int = 42

    @property
    def training_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(
        prog="lpsel validate",
        description="Train a model on random subsets, and correlate each subset's mean score with its held-out loss.",
        epilog="SCORES as in lpsel agreement. NAME=VALUE sets an option of lpsel train (model=, dataset=, ...).",
        allow_abbrev=False,
    )
    parser.add_argument("scores", nargs="+", metavar="SCORES", help="scores of the dataset, or NAME=VALUE for train")
    held_out = "held-out rows: a dataset, and options of lpsel evaluate such as dataset.limit=200"
    parser.add_argument("--held-out", nargs="+", required=True, metavar="DATASET", help=held_out)
    metric = f"{', '.join(METRICS)}, or a column of the scores (lp_app)"
    parser.add_argument("--metric", default="lp_app", metavar="M[,M...]", help=metric)
    parser.add_argument("--subsets", type=int, default=32, metavar="K", help="number of random subsets (32)")
    parser.add_argument("--pct", type=float, default=10.0, metavar="P", help="percentage of the rows in each (10)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="training runs per subset, averaged (1)")
    parser.add_argument("--seed", type=int, default=42, metavar="S", help="seed of subsets and first training run (42)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="run folder (runs/validate/TIME); an unfinished validation resumes"
    )
    options = parser.parse_intermixed_args(arguments)
    overrides = [argument for argument in options.scores if "=" in argument]
    tables = [argument for argument in options.scores if "=" not in argument]
    dataset, *others = options.held_out
    for name, _, value in (option.partition("=") for option in others):
        if name in ("model", "dataset"):
            raise UserError(name, value, "comes after --held-out", "move options of lpsel train before --held-out")
    held_out_overrides = [dataset if "=" in dataset else f"dataset={dataset}", *others]
    settings = Settings(overrides, held_out_overrides, options.subsets, options.pct, options.seeds, options.seed)
    metrics = options.metric.split(",")
    if any(override.lower() == "dry_run=true" for override in [*overrides, *others]):
        plan(tables, metrics, settings, options.out)
        return
    result = run(tables, metrics, settings, options.out)
    show(result)
    print(result["run_dir"], flush=True)


def run(
    arguments: Sequence[str], metrics: Sequence[str], settings: Settings, run_dir: Path | None = None
) -> dict[str, Any]:
    """Train, evaluate and compare; finished work in `run_dir` or the cache is reused."""
    tables, scores = _read(arguments, metrics, settings)
    _check_evaluation(settings)
    folder = run_folder("validate", run_dir, arguments)
    _write_subsets(folder / TABLE, tables[0], scores, settings)
    measured = [_measure(folder, subset, scores, settings) for subset in _subsets(len(scores), settings)]
    result = {
        "command": "validate",
        "sources": [scored.source for scored in tables],
        "train": list(settings.overrides),
        "evaluate": list(settings.held_out),
        "pct": settings.pct,
        "seeds": settings.seeds,
        "seed": settings.seed,
        **_summary(measured, scores, settings.subsets),
        "cost": {name: sum(m["cost"][name] for m in measured) for name in measured[0]["cost"]},
        "subsets": measured,
    }
    rows = [{name: m[name] for name in ("name", "rows", "nll")} | m["mean_score"] for m in measured]
    write_csv(folder / "subsets.csv", finite(rows))
    write_json(folder / RESULT, result)
    return finite(result) | {"run_dir": folder}


def plan(arguments: Sequence[str], metrics: Sequence[str], settings: Settings, run_dir: Path | None = None) -> None:
    """Print the training that `run` would do, with tokens, FLOPs and memory."""
    from lpsel.commands.dry_run import memory_problem, planned_work, print_table  # imports torch

    _, scores = _read(arguments, metrics, settings)
    _check_evaluation(settings)
    folder, jobs = (run_dir or Path("runs/validate")).expanduser().resolve(), []
    for subset in _subsets(len(scores), settings):
        for seed in settings.training_seeds:
            subset_folder = folder / f"{subset.name}-seed-{seed}"
            overrides = _overrides(folder / TABLE, subset, seed, settings)
            with configured("train"):
                config = compose("train", overrides=overrides)
            work = planned_work("train", config, subset_folder / "train", scores_exist=False)
            jobs.append((subset_folder.name, work))
    print_table(jobs)
    if problem := memory_problem(piece for _, work in jobs for piece in work or ()):
        raise problem
    print(folder, flush=True)


def _read(
    arguments: Sequence[str], metrics: Sequence[str], settings: Settings
) -> tuple[list[Scored], dict[str, Floats]]:
    """Read the tables, and all scores of their rows, (N,), by table and metric."""
    check_int("--subsets", settings.subsets, FEWEST)
    check_int("--seeds", settings.seeds, 1)
    check_int("--seed", settings.seed, 0)
    check_pct(settings.pct, "--pct", "set the percentage of rows in each subset")
    tables = read_all(arguments, least=1, columns=[name for name in metrics if name not in METRICS])
    return tables, {f"{t.name} {name}": score_of(t, name) for t in tables for name in metrics}


def _check_evaluation(settings: Settings) -> None:
    """Raise a UserError for held-out rows or options that cannot be used, before any model is trained."""
    with configured("train"):
        check_merged(compose("train", overrides=hydra_arguments("train", [*settings.overrides])))
    with configured("evaluate"):
        config = compose("evaluate", overrides=_evaluation(Path("model"), settings))
    check_required(config)
    if (evaluator := config.evaluator["_target_"]) != choice("evaluator", "reference")["_target_"]:
        raise UserError("evaluator", evaluator, "does not measure the NLL", "leave it out of --held-out")
    shared_source(build(config.evaluator).dataset)


def _subsets(scores: int, settings: Settings) -> list[Subset]:
    """Random subsets, and the lowest and the highest rows by every score."""
    subsets = [Subset(name, name) for name in _random_columns(settings)]
    for s in range(scores):
        subsets.append(Subset(f"lowest_{s}", f"score_{s}"))
        subsets.append(Subset(f"highest_{s}", f"score_{s}", highest=True))
    return subsets


def _random_columns(settings: Settings) -> list[str]:
    """Names of the columns with random numbers."""
    return [f"random_{k:03d}" for k in range(1, settings.subsets + 1)]


def _write_subsets(file: Path, first: Scored, scores: Mapping[str, Floats], settings: Settings) -> None:
    """Write the columns that subsets are selected by, NaN for rows that lack a score in at least one table."""
    value_SN = np.array([*scores.values()])
    undefined_N = ~np.isfinite(value_SN).all(axis=0)
    draw_KN = np.random.default_rng(settings.seed).random((settings.subsets, len(undefined_N)))
    numbers = dict(zip(_random_columns(settings), draw_KN, strict=True))
    numbers |= {f"score_{s}": value_N for s, value_N in enumerate(value_SN)}
    columns: dict[str, Any] = {"index": first.table.index}
    if first.table.has_content_ids:
        columns["id"] = first.table.id
    for name, number_N in numbers.items():
        columns[name] = pa.array(np.where(undefined_N, np.nan, number_N), from_pandas=True)
    content = BytesIO()
    pq.write_table(pa.table(columns), content)
    # An unchanged file keeps its modification time, which finished runs compare if it is large.
    if not file.is_file() or file.read_bytes() != content.getvalue():
        write_file(file, content.getvalue())


def _measure(folder: Path, subset: Subset, scores: Mapping[str, Floats], settings: Settings) -> dict[str, Any]:
    """Train on a subset with every seed and evaluate; returns its mean scores, NLL and cost."""
    nlls, cost = [], {"trainings": 0, "tokens": 0, "flops": 0.0, "seconds": 0.0}
    for seed in settings.training_seeds:
        subset_folder = folder / f"{subset.name}-seed-{seed}"
        overrides = _overrides(folder / TABLE, subset, seed, settings)
        with ranks_run(["train", *overrides, f"hydra.run.dir={subset_folder / 'train'}"]):
            trained = run_job("train", overrides, subset_folder / "train", in_sweep=True)
        arguments = _evaluation(subset_folder / "train", settings)
        evaluated = run_job("evaluate", arguments, subset_folder / "evaluate", in_sweep=True)
        nlls.append(evaluated["models"][0]["metrics"]["nll"]["value"])
        if trained["reused_from"] is None:
            cost["trainings"] += 1
            for name in ("tokens", "flops", "seconds"):
                cost[name] += trained["training"][name]
    rows = _selected(trained["selection"], folder / TABLE)
    means = {name: float(score_N[rows].mean()) for name, score_N in scores.items()}
    nll = None if None in nlls else float(np.mean(nlls))
    return {"name": subset.name, "rows": len(rows), "nll": nll, "nll_of_seeds": nlls, "mean_score": means, "cost": cost}


def _selected(selection: str, table: Path) -> NDArray[np.int64]:
    """Positions of the selected rows in the table; the dataset may have a different order."""
    ids = pq.read_table(table, columns=["id"])["id"] if "id" in pq.read_schema(table).names else None
    chosen = pq.read_table(selection, columns=["id", "selected"])
    if ids is None or ids.equals(chosen["id"].cast(ids.type)):
        return np.flatnonzero(chosen["selected"].to_numpy())
    positions = pc.index_in(chosen["id"].filter(chosen["selected"]).cast(ids.type), value_set=ids.combine_chunks())
    return positions.to_numpy().astype(np.int64)


def _overrides(table: Path, subset: Subset, seed: int, settings: Settings) -> list[str]:
    """Overrides for training on a subset."""
    return hydra_arguments("train", [
        *settings.overrides, f"scores={table}", "selection=score_column", f"selection.column={subset.column}",
        f"selection.descending={str(subset.highest).lower()}", "cluster=none", f"pct={settings.pct:g}", f"seed={seed}",
    ])  # fmt: skip


def _evaluation(trained: Path, settings: Settings) -> list[str]:
    """Overrides for evaluating a trained model on the held-out rows."""
    shared = [override for override in settings.overrides if override.split("=")[0].split(".")[0] in SHARED]
    return hydra_arguments("evaluate", [*shared, *EVALUATION, *settings.held_out, f"model={trained}"])


def _summary(measured: Sequence[dict[str, Any]], scores: Mapping[str, Floats], subsets: int) -> dict[str, Any]:
    """Correlate the mean scores of the random subsets, which are the first ones measured, with their NLL."""
    random, nll = measured[:subsets], {m["name"]: m["nll"] for m in measured}
    nll_K = np.array([np.nan if m["nll"] is None else m["nll"] for m in random])
    compared = []
    for s, name in enumerate(scores):
        mean_K = [m["mean_score"][name] for m in random]
        correlation, bootstrap = rank_correlation(mean_K, nll_K), bootstrap_interval(mean_K, nll_K)
        lowest, highest = nll[f"lowest_{s}"], nll[f"highest_{s}"]
        compared.append({
            "score": name,
            "spearman": correlation.value, "ci_low": correlation.low, "ci_high": correlation.high,
            "bootstrap_low": bootstrap.low, "bootstrap_high": bootstrap.high,
            "conclusive": conclusive(correlation),
            "conclusion": conclusion(correlation, subsets),
            "nll_lowest": lowest, "nll_highest": highest,
            "random_above_lowest": None if lowest is None else int((nll_K > lowest).sum()),
            "random_above_highest": None if highest is None else int((nll_K > highest).sum()),
        })  # fmt: skip
    spread = {"subsets": subsets, "mean": float(nll_K.mean()), "standard_deviation": float(nll_K.std(ddof=1))}
    return {"random_nll": spread, "scores": compared}


def show(result: Mapping[str, Any]) -> None:
    """Print the correlation of every score with the NLL, and the NLL of its lowest and highest rows."""
    random = result["random_nll"]
    notes = [f"{random['subsets']} random subsets of {result['pct']:g}%: NLL {decimals(random['mean'])}, "
               f"standard deviation {decimals(random['standard_deviation'])}"]  # fmt: skip
    notes += [f"{score['score']}: {score['conclusion']}" for score in result["scores"]]
    numbers = ("Spearman", "95% interval", "NLL of the lowest", "of the highest")
    table = console.table(("score", *numbers), numbers, notes=notes)
    for score in result["scores"]:
        ends = f"{decimals(score['ci_low'])} to {decimals(score['ci_high'])}"
        nlls = (f"{decimals(score[f'nll_{end}'])} (random above: {score[f'random_above_{end}']})"
                for end in ("lowest", "highest"))  # fmt: skip
        table.add_row(escape(score["score"]), decimals(score["spearman"]), ends, *nlls)
    console.show(table)
