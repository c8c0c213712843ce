"""Selections from the released perplexities, against independent references in plain Python."""

from bisect import bisect_left, bisect_right
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.commands import result_summary
from lpsel.commands.job import run
from lpsel.scoring.read import read_scores
from lpsel.selection.rules import PROMPT
from lpsel.selection.select import select

SCORERS = ("opt-350m", "opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b", "llama2-7b", "llama2-13b")
DOLLY_SIZES = {1: 307, 3: 604, 5: 881, 10: 1628, 25: 3861, 33: 5102}
DOLLY_BUCKETS = {"low": 5102, "mid": 5003, "high": 4906}


@pytest.fixture(scope="module", params=["dolly", "alpaca"])
def released(request, shared_data):
    """Perplexities by scorer, (4, N), and clusters, of the rows whose cluster is known."""
    name = "clusters_dolly.npz" if request.param == "dolly" else "clusters_alpaca_partial.npz"
    cluster = shared_data(name)["cluster"]
    known = cluster >= 0
    perplexities = shared_data(f"perplexities_{request.param}.npz")
    return request.param, {scorer: perplexities[scorer][:, known] for scorer in SCORERS}, cluster[known]


def score_by_hand(ppl, rule):
    p0, p1, pn = ppl[0], ppl[1], ppl[3]
    if rule == "lp":
        return [(a - b) / (a - z) if a != z else 0.0 for a, b, z in zip(p0, p1, pn, strict=True)]
    return [(a - b) / a for a, b in zip(p0, p1, strict=True)]


def parts_by_hand(rows, parts):
    """The rows in near-equal parts, longer ones first."""
    short, longer = divmod(len(rows), parts)
    ends = [0]
    for part in range(parts):
        ends.append(ends[-1] + short + (part < longer))
    return [rows[a:b] for a, b in pairwise(ends)]


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("rule", ["lp", "lp_app"])
def test_every_cluster_gives_the_scores_of_sorting_and_splitting_by_hand(released, make_table, make_spec, scorer, rule):
    _, perplexities, cluster = released
    ppl = perplexities[scorer]
    table = make_table(ppl, cluster)
    scores = score_by_hand(ppl.tolist(), rule)
    of_cluster: dict[int, list[float]] = {}
    for c, score in zip(cluster.tolist(), scores, strict=True):
        of_cluster.setdefault(c, []).append(score)
    for rows in of_cluster.values():
        rows.sort()

    cases: list[tuple[int, str | None, int, int]] = [(pct, None, round(100 / pct), 0) for pct in DOLLY_SIZES]
    cases += [(33, bucket, 3, part) for part, bucket in enumerate(("low", "mid", "high"))]
    for pct, bucket, parts, part in cases:
        selection = select(table, make_spec(rule, budget="paper", bucket=bucket), pct, seed=42)
        chosen: dict[int, list[float]] = {c: [] for c in of_cluster}
        for c, score in zip(cluster[selection.selected].tolist(), selection.score[selection.selected], strict=True):
            chosen[c].append(score)
        assert {c: sorted(rows) for c, rows in chosen.items()} == {
            c: parts_by_hand(rows, parts)[part] for c, rows in of_cluster.items()
        }, (pct, bucket)


def scores_by_hand(nll, rule):
    """The score of a row with these losses, low to be selected; None where it is undefined."""
    first, last = nll[0], nll[-1]
    if rule in ("lp_nll", "lp_app_nll", "task_lp"):
        whole = first - last if rule == "lp_nll" else first
        sign = -1 if rule == "task_lp" else 1
        return sign * (first - nll[1]) / whole if whole else None
    if rule == "learning_speed":
        return sum((first - later) / first for later in nll[1:]) / (len(nll) - 1) if first else None
    if rule == "forgetting":  # ties by the last loss
        return (-sum(after > before for before, after in pairwise(nll)), -last)
    return {"high": -first, "low": first, "mid": first}[rule]


@pytest.mark.parametrize(
    "rule", ["lp_nll", "lp_app_nll", "task_lp", "learning_speed", "forgetting", "high", "mid", "low"]
)
@pytest.mark.parametrize("scorer", ["opt-350m", "llama2-13b"])
def test_released_losses_select_the_rows_of_a_plain_loop(shared_data, make_table, make_spec, rule, scorer):
    ppl = shared_data("perplexities_dolly.npz")[scorer]
    supervised = ~(ppl == 1).all(axis=0)
    table = make_table(ppl, response_tokens=supervised, id=[f"{row:032x}" for row in range(ppl.shape[1])])
    band = {"band": rule} if rule in ("high", "mid", "low") else {}
    selection = select(table, make_spec("perplexity" if band else rule, clusters="none", **band), 10, seed=0)
    losses = zip(*np.log(ppl).tolist(), strict=True)
    scores = [scores_by_hand(nll, rule) if known else None for nll, known in zip(losses, supervised, strict=True)]
    if rule == "mid":
        known = sorted(score for score in scores if score is not None)
        scores = [None if score is None else abs(bisect_left(known, score) + bisect_right(known, score) - len(known))
                  for score in scores]  # fmt: skip
    ranked = sorted(score for score in scores if score is not None)
    assert selection.n_selected == round(ppl.shape[1] / 10)
    chosen = sorted(scores[row] for row in np.flatnonzero(selection.selected))
    assert (
        chosen == pytest.approx(ranked[: selection.n_selected])
        if rule != "forgetting"
        else chosen == ranked[: len(chosen)]
    )


def test_the_likeliest_answer_of_every_group_is_selected_from_released_losses(shared_data, make_table, make_spec):
    ppl, group = shared_data("perplexities_dolly.npz")["opt-350m"], shared_data("clusters_dolly.npz")["cluster"]
    supervised = ~(ppl == 1).all(axis=0)
    best: dict[int, int] = {}
    for row in np.flatnonzero(supervised).tolist():
        before = best.setdefault(int(group[row]), row)
        if ppl[0, row] < ppl[0, before]:
            best[int(group[row])] = row
    table = make_table(ppl, response_tokens=supervised, columns={PROMPT: group.astype(float)})
    selection = select(table, make_spec("grape", clusters="none"), 100 * len(best) / len(group), seed=0)
    assert np.flatnonzero(selection.selected).tolist() == sorted(best.values())


@pytest.mark.parametrize("rule", ["lp", "lp_app", "random"])
def test_dolly_subsets_have_the_published_sizes(shared_data, make_table, make_spec, rule):
    cluster = shared_data("clusters_dolly.npz")["cluster"]
    perplexities = shared_data("perplexities_dolly.npz")
    for scorer in SCORERS:
        table = make_table(perplexities[scorer], cluster)
        sizes = {pct: select(table, make_spec(rule, budget="paper"), pct, 42).n_selected for pct in DOLLY_SIZES}
        assert sizes == DOLLY_SIZES
        buckets = {b: select(table, make_spec(rule, budget="paper", bucket=b), 33, 42) for b in DOLLY_BUCKETS}
        assert {b: selection.n_selected for b, selection in buckets.items()} == DOLLY_BUCKETS


@pytest.fixture
def dolly_table(shared_data, tmp_path):
    """Writes a scorer's released perplexities and the clusters as a table."""

    def write(scorer):
        ppl = shared_data("perplexities_dolly.npz")[scorer]
        columns = {f"ppl_{epoch}": ppl[epoch] for epoch in range(4)}
        columns["cluster"] = shared_data("clusters_dolly.npz")["cluster"]
        pq.write_table(pa.table(columns), tmp_path / "dolly.parquet")
        return tmp_path / "dolly.parquet"

    return write


def test_the_command_reads_such_a_table_and_summarizes_its_selection(shared_data, dolly_table, tmp_path):
    data = f"dataset.path={shared_data.folder / 'dolly.jsonl.xz'}"
    asked = ["dataset=local", data, f"scores={dolly_table('opt-350m')}", "selection=lp", "pct=1", "tracker=none"]
    result = run("select", [*asked, "selection.budget=paper"], tmp_path / "run")
    assert result["n_selected"] == Path(result["subset"]).read_bytes().count(b"\n") == DOLLY_SIZES[1]
    pairs = result_summary.selection(result)
    rows = "307 of 15,011 rows (2.05%, 1% requested, budget paper), from 300 of 300 clusters"
    rows += "; 472 rows are tied at the cutoff"  # mostly at 0, as undefined scores count
    assert pairs[0] == ("Selection lp", rows)
    assert list(dict.fromkeys(name for name, _ in pairs if name))[1:] == [
        "Scores", "Mean characters", "Odd scores", "Score correlates", "Selected rows", "Warning", "First in ranking",
        "Last in ranking",
    ]  # fmt: skip
    rows = [what for _, what in pairs if ": " in what and "  row " in what]
    assert len(rows) == 6, "three of each end"


@pytest.mark.parametrize(("scorer", "empty"), [("opt-350m", 544), ("llama2-13b", 765)])
def test_rows_without_response_fill_the_released_subsets_and_no_exact_one(dolly_table, make_spec, scorer, empty):
    table = read_scores(dolly_table(scorer))
    unsupervised = table.response_tokens == 0
    assert unsupervised.sum() == empty

    released = select(table, make_spec("lp", budget="paper"), 1, 42).selected
    assert 0.57 <= unsupervised[released].mean() <= 0.63, "as measured on the released 1% subsets"
    exact = select(table, make_spec("lp"), 1, 42)
    assert exact.n_selected == 150, "1% of 15,011 is 150.11"
    assert not unsupervised[exact.selected].any()
    assert exact.counts["no supervised token"] == empty
    assert select(replace(table, cluster=None), make_spec("lp_app"), 10, 42).n_selected == 1501
