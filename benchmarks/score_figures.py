"""Draw the figures of docs/explanation/what-a-score-measures.md from the perplexities released with the paper.

    python benchmarks/score_figures.py FOLDER [--out docs/figures]

FOLDER has perplexities_alpaca.npz and perplexities_dolly.npz, with an array (4, rows) for every scorer. The same files
give the same figures.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from lpsel.errors import UserError
from lpsel.report.drawing import MUTED, SERIES, legend, new_axes, styled, svg
from lpsel.scoring.metrics import METRICS, learning_percentage
from lpsel.scoring.read import read_scores
from lpsel.selection.agreement import agreement
from lpsel.storage import write_atomically

LARGE = "opt-13b"
SMALL = ("opt-350m", "opt-1.3b", "opt-2.7b", "opt-6.7b")
RULES = ("lp_app", "lp_app_nll")
GROUPS = 20  # of rows with similar loss before training


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of the page on what a score measures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    options = parser.parse_args(argv)
    try:
        drawn = {"score-and-loss": score_and_loss(options.folder), "scorer-transfer": scorer_transfer(options.folder)}
    except UserError as error:
        raise SystemExit(f"The released perplexities are needed: {error}") from None
    for name, figure in drawn.items():
        path, content = options.out / f"{name}.svg", svg(figure, name).encode()
        write_atomically(path, lambda file, content=content: file.write(content))
        print(path)


def defined_scores(folder: Path, dataset: str, scorers: tuple[str, ...]) -> tuple[NDArray[np.float64], Any]:
    """Read scores by rule, scorer and row, (2, S, M), and losses before training, (S, M), of rows where all exist."""
    tables = [read_scores(folder / f"perplexities_{dataset}.npz", key=scorer) for scorer in scorers]
    scores_RSN = np.array([[learning_percentage(table, rule) for table in tables] for rule in RULES])
    defined_N = np.isfinite(scores_RSN).all(axis=(0, 1)) & np.all([t.response_tokens > 0 for t in tables], axis=0)
    return scores_RSN[:, :, defined_N], np.array([table.nll[0, defined_N] for table in tables])


@styled
def score_and_loss(folder: Path) -> Any:
    """Plot the mean rank by score over groups of similar loss before training, for OPT-350M on Alpaca."""
    scores_RSM, loss_SM = defined_scores(folder, "alpaca", SMALL[:1])
    groups = np.array_split(np.argsort(loss_SM[0], kind="stable"), GROUPS)
    figure, axes = new_axes()
    for rule, score_M, color in zip(RULES, scores_RSM[:, 0], SERIES, strict=False):
        rank_M = 100 * (rankdata(score_M) - 0.5) / len(score_M)
        axes.plot([loss_SM[0, g].mean() for g in groups], [rank_M[g].mean() for g in groups], "o-", color=color,
                  markersize=3, linewidth=1.2, label=METRICS[rule].title)  # fmt: skip
    axes.axhline(50, color=MUTED, linewidth=1, linestyle="--")
    axes.set(xlabel="loss before training (nats per token)", ylabel="mean rank by score, %\n(low: selected as hard)")
    axes.set_ylim(0, 100)
    legend(axes)
    return figure


@styled
def scorer_transfer(folder: Path) -> Any:
    """Plot the overlap of each scorer's lowest 10% with OPT-13B's on Dolly, over the rows that both define."""
    figure, axes = new_axes()
    for rule, color in zip(range(len(RULES)), SERIES, strict=False):
        overlap = [
            agreement(defined_scores(folder, "dolly", (scorer, LARGE))[0][rule], [10]).share[0, 0, 1]
            for scorer in SMALL
        ]
        axes.plot(range(len(SMALL)), overlap, "o-", color=color, markersize=4, linewidth=1.2,
                  label=METRICS[RULES[rule]].title)  # fmt: skip
        for x, value in enumerate(overlap):
            offset = (0, 5 if rule else -13)  # above the upper line, below the lower one
            axes.annotate(f"{value:.2f}", (x, value), xytext=offset, textcoords="offset points", ha="center")
    axes.axhline(0.1, color=MUTED, linewidth=1, linestyle="--")
    axes.annotate("chance", (len(SMALL) - 1, 0.1), xytext=(0, 3), textcoords="offset points", ha="right", color=MUTED)
    axes.set(
        xlim=(-0.3, len(SMALL) - 0.7),
        ylim=(0, 1),
        ylabel=f"overlap of the lowest 10% with {LARGE}",
        xticks=range(len(SMALL)),
    )
    axes.set_xticklabels(SMALL)
    legend(axes)
    return figure


if __name__ == "__main__":
    main()
