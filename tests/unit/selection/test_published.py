"""budget=paper against the released perplexities and clusters, and an independent reference in plain Python."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.commands import result_summary
from lpsel.commands.job import run
from lpsel.scoring.read import read_scores
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
    rows = "307 of 15,011 rows (2.05 %, 1 % requested, budget paper), from 300 of 300 clusters"
    rows += "; 472 rows are tied at the cutoff"  # mostly at 0, as undefined scores count
    assert pairs[0] == ("Selection lp", rows)
    assert list(dict.fromkeys(name for name, _ in pairs if name))[1:] == [
        "Scores", "Mean characters", "Odd scores", "Score follows", "Selected rows", "Warning", "First in ranking",
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
    assert 0.57 <= unsupervised[released].mean() <= 0.63, "as measured on the released 1 % subsets"
    exact = select(table, make_spec("lp"), 1, 42)
    assert exact.n_selected == 150, "1 % of 15,011 is 150.11"
    assert not unsupervised[exact.selected].any()
    assert exact.counts["no supervised token"] == empty
    assert select(replace(table, cluster=None), make_spec("lp_app"), 10, 42).n_selected == 1501
