"""The agreement report as one page of HTML that needs no network: figures stand inside, every text is escaped."""

from itertools import combinations
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lpsel.report import figures
from lpsel.scoring.metrics import METRICS
from lpsel.selection.agreement import ROWS_OF_A_CLUSTER
from lpsel.selection.agreement_study import ALL, DEFINED, Study
from lpsel.storage import finite

FORMULAS = {
    "lp": "LP(1) = (P₀ − P₁) / (P₀ − Pₙ), of perplexities: the share of all learning that epoch 1 brings.",
    "lp_app": "LP_app(1) = (P₀ − P₁) / P₀, of perplexities: LP's approximation from one epoch.",
    "lp_nll": "LP's formula over the mean loss per token (NLL) in place of perplexity.",
}


def page(made: Study, numbers: dict[str, Any]) -> str:
    """The page.

    Args:
        made: a study.
        numbers: the same as plain values, None where a figure is undefined.
    """
    environment = Environment(
        loader=PackageLoader("lpsel.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = lambda value: "–" if value is None else f"{value:.3f}"
    scale = figures.density_scale(figures.INK_IN_SVG)
    return environment.get_template("agreement.html.j2").render(
        numbers=numbers,
        labels={name: metric.title for name, metric in METRICS.items()},
        formulas=FORMULAS,
        heatmaps={metric: _heatmaps(made, metric) for metric in made.metrics},
        rank_ranks={metric: _rank_ranks(made, metric) for metric in made.metrics},
        scale=Markup(figures.svg(scale, "scale", "Colour scale")) if _dense(made) else None,
        pairs=lambda metric, rows: [p for p in numbers["pairs"] if (p["metric"], p["rows"]) == (metric, rows)],
        all_rows=ALL,
        defined=DEFINED,
        rows_of_a_cluster=ROWS_OF_A_CLUSTER,
    )


def heatmap_values(made: Study, metric: str) -> list[tuple[str, str, Any]]:
    """Name for a file, title and values of every matrix that is drawn; of the rows that are defined."""
    found = made.between[metric, DEFINED]
    label = METRICS[metric].title
    drawn = [
        ("spearman", f"{label}: Spearman", found.spearman),
        ("kendall", f"{label}: Kendall tau-b", found.kendall),
    ]
    for p, pct in enumerate(made.pcts):
        title = f"{label}: lowest {pct:g} % in common\n(chance {found.chance[p]:.2f})"
        drawn.append((f"lowest-{pct:g}", title, found.share[p]))
    return drawn


def _heatmaps(made: Study, metric: str) -> list[dict[str, Any]]:
    drawn = []
    for name, title, values in heatmap_values(made, metric):
        # The title stands in the page's text: inside, a long one would make its figure smaller than the others.
        figure = figures.heatmap(made.names, values, "", figures.INK_IN_SVG)
        label = escape(f"Matrix. {title}")
        drawn.append({"title": title, "svg": Markup(figures.svg(figure, f"heatmap-{metric}-{name}", str(label)))})
    return drawn


def _rank_ranks(made: Study, metric: str) -> list[dict[str, Any]]:
    found = made.between[metric, DEFINED]
    ranks_SN = figures.percent_ranks(made.filled(DEFINED)[made.metrics.index(metric)])
    drawn = []
    for a, b in combinations(range(len(made.names)), 2):
        figure = figures.rank_panel(ranks_SN[a], ranks_SN[b], made.pcts, figures.INK_IN_SVG)
        label = escape(f"Ranks by {made.names[a]}, across, and by {made.names[b]}, up")
        drawn.append(
            {
                "across": made.names[a],
                "up": made.names[b],
                "spearman": finite(found.spearman[a, b]),
                "svg": Markup(figures.svg(figure, f"rank-rank-{metric}-{a}-{b}", str(label))),
            }
        )
    return drawn


def _dense(made: Study) -> bool:
    return int(made.defined.sum()) >= figures.FEWEST_FOR_DENSITY
