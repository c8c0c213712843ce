"""Explorer page: the rows of a run as points and as a searchable list with their texts.

N rows of the dataset, S rows on the page, D dimensions of an embedding
"""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from lpsel.console import shortened
from lpsel.data.random_order import random_keys
from lpsel.report.drawing import COLORMAP, SERIES
from lpsel.report.page import render

MOST_BYTES = 7_950_000  # maximum size of the page
MOST_ROWS = 100_000  # rows on the page; if there are more, or they do not fit, it has a sample of SAMPLE rows
SAMPLE = 5_000
TEXT_LENGTHS = (600, 300, 200, 120, 60)  # characters per prompt and response; the first length that fits is used
DIGITS = 5  # significant digits of numbers
OUTSIDE = 0.5  # percent of the points at each end of an axis outside its initial range
MARGIN = 0.03  # margin on each side, as a fraction of the range
TEXTS = ("prompt", "response")
RANGES = ("score", "nll_0", "nll_1", "length", "index")  # columns with range filters


@dataclass(frozen=True)
class Explorer:
    """Content of the page."""

    name: str  # name of the run
    # The S rows, with the columns `index`, `selected` and, if available, `id`, `score`, `rank`, `nll_0`, `nll_1`,
    # `length` (of the response), `cluster`, `reason`, `prompt`, `response`, `x` and `y` (the map).
    rows: pa.Table
    n_total: int  # N
    rule: str  # rule that computed the score
    unit: str  # unit of `length`, tokens or characters
    explained: Sequence[float]  # fraction of the embedding variance along x and y; empty without a map
    facts: Sequence[tuple[str, str]]  # (name, text) pairs about the selection
    warnings: Sequence[str]  # warnings about the selection

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the columns on the page."""
        names = {"index": "row", "score": self.rule, "rank": "rank", "nll_0": "NLL before", "nll_1": "NLL after"}
        names |= {"length": f"response {self.unit}", "cluster": "cluster", "reason": "reason"}
        return {name: label for name, label in names.items() if name in self.rows.column_names}


def fair_sample(rows: pa.Table, count: int) -> pa.Table:
    """Sample `count` rows, or all if there are fewer, in the same order.

    Selected and other rows are drawn in proportion to their numbers, with at least one selected row. The sample is
    random by content (`random_keys`, seed 0), so it does not depend on the order of the rows.
    """
    if len(rows) <= count:
        return rows
    selected_N = rows["selected"].to_numpy().astype(bool)
    ids = rows["id"].combine_chunks() if "id" in rows.column_names else None
    order_N = np.argsort(random_keys(ids, rows["index"].to_numpy(), seed=0), kind="stable")
    selected, others = order_N[selected_N[order_N]], order_N[~selected_N[order_N]]
    n_selected = max(round(count * selected_N.mean()), min(len(selected), 1))
    return rows.take(pa.array(np.sort(np.concatenate([selected[:n_selected], others[: count - n_selected]]))))


def map_of(vectors_SD: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[float]]:
    """First two principal components, float64 (S, 2), and the fraction of the variance that each explains.

    Rows with NaN in their vector are NaN. With fewer than three different vectors there is no map, (S, 0).
    """
    from sklearn.decomposition import PCA

    known_S = np.isfinite(vectors_SD).all(axis=1)
    if len(np.unique(vectors_SD[known_S], axis=0)) < 3 or vectors_SD.shape[1] < 2:
        return np.empty((len(vectors_SD), 0)), []
    pca = PCA(2, svd_solver="covariance_eigh")
    map_S2 = np.full((len(vectors_SD), 2), np.nan)
    map_S2[known_S] = pca.fit_transform(vectors_SD[known_S].astype(np.float64))
    return map_S2, pca.explained_variance_ratio_.tolist()


def explorer_page(explorer: Explorer) -> str:
    """Render a page of at most MOST_BYTES: all rows with texts as long as fit, or a sample.

    Data and plotly.js are compressed. Texts of rows are not part of the HTML; the script inserts them as plain text.
    """
    library = get_plotlyjs()
    compressed = _compressed(library.encode())
    room = MOST_BYTES - len(compressed) - 100_000
    packed, longest = _fitting(explorer, room)
    if packed is None:
        explorer = replace(explorer, rows=fair_sample(explorer.rows, SAMPLE))
        packed, longest = _fitting(explorer, room)
    assert packed is not None  # SAMPLE rows of the shortest texts always fit
    table, labels = explorer.rows, explorer.labels
    return render(
        "explorer.html.j2",
        explorer=explorer,
        labels=labels,
        ranges=[name for name in RANGES if name in labels],
        reasons=table["reason"].unique().drop_null().to_pylist() if "reason" in labels else [],
        longest=longest if "prompt" in table.column_names else 0,
        n_selected=int(table["selected"].to_numpy().sum()),
        data=packed,
        plotly=compressed,
        library=library,
    )


def _fitting(explorer: Explorer, room: int) -> tuple[str | None, int]:
    """Compress the page data with the longest texts that fit; returns None for the data if it exceeds `room`."""
    data = page_data(explorer)
    texts = {name: explorer.rows[name].to_pylist() for name in TEXTS if name in explorer.rows.column_names}
    for longest in TEXT_LENGTHS:
        cut = {name: [shortened(text, longest) for text in column] for name, column in texts.items()}
        plain = {**data, "columns": {**data["columns"], **cut}}
        content = json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()
        if len(content) <= 2.2 * room:  # texts rarely compress to less than a third, 4/9 in base64
            packed = _compressed(content)
            if len(packed) <= room:
                return packed, longest
    return None, 0


def page_data(explorer: Explorer) -> dict[str, Any]:
    """Data for the script of the page, except texts: columns, labels, views and colors."""
    columns: dict[str, list[Any]] = {}
    for name in explorer.rows.column_names:
        if name not in TEXTS:
            values = explorer.rows[name].to_pylist()
            if pa.types.is_floating(explorer.rows[name].type):
                values = [None if value is None else float(f"{value:.{DIGITS}g}") for value in values]
            columns[name] = values
    colormap = matplotlib.colormaps[COLORMAP]
    score = np.array([value for value in columns.get("score", []) if value is not None])
    return {
        "name": explorer.name,
        "columns": columns,
        "labels": explorer.labels,
        "views": views(explorer),
        "tenths": np.unique(np.percentile(score, range(10, 100, 10))).tolist() if len(score) else [],
        "series": len(SERIES),  # number of colors in the page's style
        "scale": [to_hex(colormap(i)) for i in np.linspace(0.16, 0.92, 10)],
    }


def views(explorer: Explorer) -> list[dict[str, Any]]:
    """Views that the columns support: NLL, score by length, and the map; only length if there are no others."""
    rows, labels, names = explorer.rows, explorer.labels, set(explorer.rows.column_names)
    views = []
    if {"nll_0", "nll_1"} <= names:
        x = _axis(rows, "nll_0", "NLL before training, nats per token")
        y = _axis(rows, "nll_1", "NLL after one epoch, nats per token")
        views.append({"name": "NLL before and after", "x": x, "y": y, "diagonal": True})
    if {"score", "length"} <= names:
        x, y = _axis(rows, "length", labels["length"], log=True), _axis(rows, "score", labels["score"])
        views.append({"name": "Score and length", "x": x, "y": y})
    elif "length" in names and "score" not in names and not views:
        x, y = _axis(rows, "length", labels["length"], log=True), _axis(rows, "index", labels["index"])
        views.append({"name": "Length", "x": x, "y": y})
    if {"x", "y"} <= names:
        x_part, y_part = explorer.explained
        x = _axis(rows, "x", f"first principal component, {x_part:.0%} of variance")
        y = _axis(rows, "y", f"second principal component, {y_part:.0%} of variance")
        views.append({"name": "Map", "x": x, "y": y})
    return views


def _axis(rows: pa.Table, column: str, title: str, log: bool = False) -> dict[str, Any]:
    """Create an axis whose initial range excludes OUTSIDE percent of the points at each end."""
    values = rows[column].drop_null().cast(pa.float64()).to_numpy()
    values = np.log10(np.maximum(values, 1)) if log else values
    low, high = np.percentile(values, [OUTSIDE, 100 - OUTSIDE])
    margin = MARGIN * (high - low) or 0.5
    return {"column": column, "title": title, "log": log, "range": [low - margin, high + margin]}


def _compressed(content: bytes) -> str:
    """Compress bytes with zlib and encode them as base64; the page decompresses them."""
    return base64.b64encode(zlib.compress(content, 7)).decode()
