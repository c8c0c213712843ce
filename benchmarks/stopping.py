"""Compare LP_app after shortened training of the scorer with LP_app after the whole epoch.

    python benchmarks/stopping.py MODEL_FOLDER DATA_FILE  # 1,000 rows; the table of docs/results/stopping.md
    python benchmarks/stopping.py MODEL_FOLDER DATA_FILE --rows 200 --cache FOLDER

Each line is one run of `lpsel select`. Cached scores are reused. The second line only has another seed for the order of
the rows, since two whole epochs do not give the same ranking either.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lpsel.commands.job import run
from lpsel.data.random_order import PART, epoch_order, random_rows
from lpsel.scoring.metrics import learning_percentage
from lpsel.selection.agreement import agreement, lowest

PCT = 10
BATCH = 32
SEED = 42
SETTINGS = {
    "the whole epoch": [],
    "the whole epoch in another order": ["scorer.recipe.seed=43"],
    "`scorer.stop=stable`": ["scorer.stop=stable"],
    "`scorer.train_fraction=.5`": ["scorer.train_fraction=.5"],
    "`scorer.train_fraction=.25`": ["scorer.train_fraction=.25"],
}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--precision", default="bf16-true")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--also", nargs="*", default=[], help="overrides of all runs")
    options = parser.parse_args(argv)
    for path in (options.model, options.data):
        if not path.exists():
            print(f"{path} is not there: nothing to measure. Give a model folder and a data file.")
            return []
    with tempfile.TemporaryDirectory() as work:
        common = [
            "scorer=local", f"scorer.path={options.model}", "dataset=local", f"dataset.path={options.data}",
            f"dataset.limit={options.rows}", f"cache_dir={options.cache or work}", "selection=lp_app", "cluster=none",
            f"trainer.precision={options.precision}", f"scorer.recipe.seed={SEED}",
            f"scorer.recipe.global_batch={BATCH}", "tracker=none", *options.also,
        ]  # fmt: skip
        folders = []
        for i, overrides in enumerate(SETTINGS.values()):
            result = run("select", [*common, *overrides], Path(work) / str(i))
            folders.append(Path(result["scores"]).parent)
            print(f"{' '.join(overrides) or 'whole'}: {folders[-1]}", flush=True)
        return show(folders)


def show(folders: list[Path]) -> list[dict[str, Any]]:
    """Print the table; the other folders are compared with the first."""
    tables = [pq.read_table(folder / "scores.parquet") for folder in folders]
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    score_SN = np.array([learning_percentage(np.array([t["nll_0"], t["nll_1"]], np.float64), "lp_app") for t in tables])
    defined_N = np.isfinite(score_SN).all(axis=0)
    compared = agreement(score_SN[:, defined_N], [PCT])
    low_SN = lowest(score_SN[:, defined_N], PCT)
    print(f"lowest {PCT}%: {compared.lowest[0]:,} of {compared.n:,} rows")
    common = f"lowest {PCT}% in common (chance)"
    print(f"| training | rows trained on | FLOPs | Spearman | {common} | not trained on, of these |")
    print("|---|---|---|---|---|---|")
    figures = []
    for i, (name, table, manifest) in enumerate(zip(SETTINGS, tables, manifests, strict=True)):
        unseen_N = ~_trained(table, manifest)[defined_N]
        figures.append(
            {
                "training": name,
                "rows_trained": manifest.get("rows_trained", compared.n),
                "flops": manifest["flops"] / manifests[0]["flops"],
                "spearman": compared.spearman[0, i],
                "common": compared.share[0, 0, i],
                "chance": compared.chance[0, 0, i],
                "unseen": unseen_N.mean(),
                "unseen_of_lowest": unseen_N[low_SN[i]].mean(),
                "checked_epochs": manifest.get("checked_epochs"),
            }
        )
        f = figures[-1]
        print(
            f"| {name} | {f['rows_trained']:,} | {f['flops']:.2f} | {f['spearman']:.3f} | "
            f"{f['common']:.2f} ({f['chance']:.2f}) | {f['unseen_of_lowest']:.0%} (of all {f['unseen']:.0%}) |"
        )
        for epoch in f["checked_epochs"] or []:
            print(json.dumps(epoch))
    return figures


def _trained(table: Any, manifest: dict[str, Any]) -> NDArray[np.bool_]:
    """Return the mask of rows that the scorer was trained on, bool (N,)."""
    ids, some_N = table["id"].to_pylist(), table["response_tokens"].to_numpy() > 0
    seed, batch = manifest["recipe"]["seed"], manifest["recipe"]["global_batch"]
    if fraction := manifest.get("train_fraction"):
        rows = random_rows(some_N, ids, seed, PART, int(fraction * some_N.sum() + 0.5))
    else:
        order = epoch_order(ids, seed, 0)
        stopped = [epoch["stopped"] for epoch in manifest.get("checked_epochs", [])]
        rows = order[some_N[order]][: stopped[0] * batch if stopped and stopped[0] else None]
    trained_N = np.zeros(len(ids), np.bool_)
    trained_N[rows] = True
    return trained_N


if __name__ == "__main__":
    main()
