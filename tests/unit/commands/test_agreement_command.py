"""The agreement command: what it writes, what it reads, its errors."""

import csv
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from lpsel.commands.agreement import main, run, show_diagnosis
from lpsel.commands.agreement_inputs import read_all, read_clusters
from lpsel.commands.arguments import SELECTION
from lpsel.errors import UserError
from lpsel.integrity import seal
from lpsel.storage import write_json

N = 40
CONTENT = [f"{i:032x}" for i in range(N)]


@pytest.fixture
def scores(tmp_path):
    """Writes a scores folder of a scorer, as recording does."""

    def write(name, scorer=None, seed=0, ids=CONTENT, fingerprint=None, epochs=3, empty=()):
        generator = np.random.default_rng(seed)
        folder = tmp_path / name
        folder.mkdir()
        nll = 3 - np.cumsum(generator.random((epochs + 1, len(ids))) / 4, axis=0)
        tokens = generator.integers(5, 50, len(ids))
        tokens[list(empty)] = 0
        columns = {
            "index": np.arange(len(ids)),
            "id": list(ids),
            "prompt_tokens": pa.array(np.full(len(ids), 9), pa.int32()),
            "response_tokens": pa.array(tokens, pa.int32()),
            "truncated": np.zeros(len(ids), bool),
        }
        columns |= {f"nll_{e}": pa.array(row, mask=tokens == 0) for e, row in enumerate(nll)}
        pq.write_table(pa.table(columns), folder / "scores.parquet")
        scored = hashlib.sha256("\n".join(ids).encode()).hexdigest() if fingerprint is None else fingerprint
        about = {"format": 1, "scorer": scorer or name, "dataset_fingerprint": scored}
        seal(folder / "manifest.json", ["scores.parquet"], about)
        return folder

    return write


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


class Page(HTMLParser):
    """What a page refers to, what elements it has, and its text."""

    def __init__(self, html):
        super().__init__()
        self.links, self.tags, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href", "srcset", "action")]
        self.links += re.findall(r"url\(([^)]*)\)", dict(attrs).get("style") or "")

    def handle_data(self, data):
        self.text.append(data)


def test_a_run_folder_has_numbers_tables_figures_and_a_page(scores, tmp_path):
    out = tmp_path / "out"
    result = run([str(scores("a", seed=1)), str(scores("b", seed=2)), str(scores("c", seed=3))], out, [10, 50])
    assert {p.name for p in out.iterdir()} == {
        ".lpsel.json",
        "agreement.html", "agreement.json", "result.json", "tables.csv", "pairs.csv", "within.csv", "diagnosis.csv",
        *(f"rank-rank-{m}.png" for m in ("lp", "lp_app", "lp_nll", "lp_app_nll")),
        *(f"heatmap-{m}-{what}.png" for m in ("lp", "lp_app", "lp_nll", "lp_app_nll")
          for what in ("spearman", "kendall", "lowest-10", "lowest-50")),
    }  # fmt: skip
    written = strict(out / "result.json")
    assert (written["command"], written["scorers"], written["n_total"]) == ("agreement", ["a", "b", "c"], N)
    assert all((out / p).is_file() for p in [written["agreement"], written["page"], *written["figures"]])
    numbers = strict(out / "agreement.json")
    assert numbers == result["numbers"]
    assert len(numbers["pairs"]) == 4 * 3 * 2  # metrics, pairs, rows
    with (out / "pairs.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["lowest_50_share"]) == pytest.approx(numbers["pairs"][0]["lowest"][1]["share"])
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in out.glob("*.png"))


def test_the_figures_are_those_of_scipy_on_the_recorded_losses(scores, tmp_path):
    folders = [scores("a", seed=1, empty=[0, 1]), scores("b", seed=2)]
    pairs = run([str(f) for f in folders], tmp_path / "out")["numbers"]["pairs"]
    ppl = [np.exp([pq.read_table(f / "scores.parquet")[f"nll_{e}"].to_numpy()[2:] for e in range(2)]) for f in folders]
    expected = spearmanr(*[(before - after) / before for before, after in ppl]).statistic
    found = next(p for p in pairs if (p["metric"], p["rows"]) == ("lp_app", "defined"))
    assert found["spearman"] == pytest.approx(expected)
    assert found["n"] == N - 2


def test_a_constant_scorer_is_null_and_no_nan(scores, tmp_path):
    flat = tmp_path / "flat.csv"
    flat.write_text("ppl_0,ppl_1,ppl_2\n" + "4,2,1.5\n" * N)
    out = tmp_path / "out"
    run([str(scores("a")), str(flat)], out)
    assert strict(out / "agreement.json")["pairs"][0]["spearman"] is None
    assert "NaN" not in (out / "agreement.json").read_text()
    assert not re.search(r"\b(nan|None)\b", (out / "agreement.html").read_text())


def test_the_page_needs_no_network_and_escapes_every_text(scores, tmp_path):
    evil = "<script>alert('$1$')</script> & \"co\""
    one, other = scores("a", scorer=evil), scores("b", scorer="https://example.org/model", seed=1)
    run([str(one), str(other)], tmp_path / "out")
    html = (tmp_path / "out" / "agreement.html").read_text()
    page = Page(html)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in html
    assert any(evil in text for text in page.text), "the name is shown as it is"
    assert "prefers-color-scheme: dark" in html
    assert page.tags.count("svg") == 4 * 3 + 4 * 1, "three matrices and one pair for every metric"


def test_many_rows_are_drawn_as_a_density_with_its_scale(tmp_path):
    generator = np.random.default_rng(0)
    ppl = np.sort(1 + generator.random((2, 2_000)), axis=0)[::-1]
    np.savez(tmp_path / "p.npz", one=ppl, other=ppl * (1 + generator.random(2_000)))
    run([f"{tmp_path}/p.npz"], tmp_path / "out")
    html = (tmp_path / "out" / "agreement.html").read_text()
    assert html.count("data:image/png;base64,") >= 1
    assert "rows, in multiples of chance" in html


def test_tables_are_found_in_folders_runs_files_and_archives(scores, tmp_path):
    folder = scores("opt-350m-rows-0123-e3", scorer="opt-350m")
    run_folder = tmp_path / "2026-01-01"
    run_folder.mkdir()
    write_json(
        run_folder / "result.json",
        {"scores": str(folder / "scores.parquet"), "scorer": {"name": "opt-350m"}, "rule": "lp"},
    )
    table = tmp_path / "mine.csv"
    table.write_text("nll_0,nll_1\n" + "2,1\n" * N)
    np.savez(tmp_path / "released.npz", first=np.full((2, N), 2.0), second=np.full((2, N), 3.0))
    given = [folder, run_folder, table, f"{tmp_path}/released.npz:second", f"{tmp_path}/released.npz"]
    names = [found.name for found in read_all([str(g) for g in given])]
    assert names == [
        "opt-350m (opt-350m-rows-0123-e3)", "opt-350m (2026-01-01)", "mine", "second (released) (#1)", "first",
        "second (released) (#2)",
    ]  # fmt: skip


def test_a_run_that_chose_without_scores_is_refused(tmp_path, scores):
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "result.json", {"scores": None, "rule": "random"})
    with pytest.raises(UserError, match=r"run: this run used no scores \(selection=random\)"):
        read_all([f"{tmp_path}/run", str(scores("a"))])
    write_json(tmp_path / "run" / "result.json", {"scores": "/nowhere/scores.parquet"})
    with pytest.raises(UserError, match=r"its scores /nowhere/scores\.parquet no longer exist"):
        read_all([f"{tmp_path}/run", str(scores("b"))])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"ids": CONTENT[:30]}, r"b: has 30 rows, and \S*a has 40\."),
        ({"ids": [*CONTENT[1:], "f" * 32]}, r"b: row 0 has id 0{31}1, and in \S*a 0{32}\."),
        (
            {"fingerprint": "0" * 64},
            r"b/scores.parquet: its rows have fingerprint \w{12}, but its manifest.json belongs to",
        ),
    ],
)
def test_tables_of_other_rows_are_refused(scores, tmp_path, other, message):
    with pytest.raises(UserError, match=message) as error:
        run([str(scores("a")), str(scores("b", **other))], tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_one_table_and_a_folder_without_scores_are_refused(scores, tmp_path):
    with pytest.raises(UserError, match="a: only one table"):
        run([str(scores("a"))], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: neither a scores folder nor a finished run of select or train"):
        run([str(scores("b")), f"{tmp_path}/empty"], tmp_path / "out")


def test_clusters_of_a_run_that_have_changed_are_refused(tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    pq.write_table(pa.table({"index": np.arange(N), "cluster": np.arange(N) % 3}), run_folder / "selection.parquet")
    seal(run_folder / "result.json", ["selection.parquet"], {})
    assert (read_clusters(str(run_folder), np.arange(N)) == np.arange(N) % 3).all()
    pq.write_table(pa.table({"index": np.arange(N), "cluster": np.arange(N) % 2}), run_folder / "selection.parquet")
    with pytest.raises(UserError, match=r"selection\.parquet: has changed since it was written .*\. Select again\."):
        read_clusters(str(run_folder), np.arange(N))


def test_unusable_rows_of_a_run_are_in_no_cluster(tmp_path):
    def clusters(values):
        pq.write_table(pa.table({"index": [0, 1, 2], "cluster": pa.array(values, pa.int32())}), tmp_path / SELECTION)
        seal(tmp_path / "result.json", [SELECTION], {})
        return read_clusters(str(tmp_path), np.arange(3)).tolist()

    assert clusters([4, None, 2]) == [4, -1, 2]
    with pytest.raises(UserError, match="this run used no clusters"):
        clusters([None, None, None])


def test_a_note_names_tables_that_are_the_same_scores(scores, tmp_path):
    a, b = str(scores("a")), str(scores("b", seed=1))
    notes = run([a, b, a], tmp_path / "out")["numbers"]["notes"]
    assert [note for note in notes if "same scores" in note] == [
        "a (a) (#1) and a (a) (#2) are the same scores: agreement compares scorers, not the rows that two rules select."
    ]
    assert "are the same scores" in (tmp_path / "out" / "agreement.html").read_text()
    assert not any("same scores" in note for note in run([a, b], tmp_path / "two")["numbers"]["notes"])


def test_clusters_come_from_a_file_or_a_table(scores, tmp_path):
    cluster = np.arange(N) % 3 - 1
    np.savez(tmp_path / "clusters.npz", cluster=cluster)
    pq.write_table(pa.table({"index": np.arange(N)[::-1], "cluster": cluster[::-1]}), tmp_path / "clusters.parquet")
    tables = [str(scores("a", epochs=1)), str(scores("b", seed=1, epochs=1))]
    results = [run(tables, tmp_path / k, clusters=f"{tmp_path}/clusters.{k}")["numbers"] for k in ("npz", "parquet")]
    assert results[0]["pairs"] == results[1]["pairs"]
    assert results[0]["clusters"]["clusters"] == 2
    assert results[0]["clusters"]["rows_in_none"] == (cluster == -1).sum()
    assert results[0]["pairs"][0]["in_clusters"]["clusters"] == 2
    with_column = tmp_path / "with-cluster.parquet"
    pq.write_table(
        pq.read_table(f"{tables[0]}/scores.parquet").append_column("cluster", pa.array(cluster)), with_column
    )
    again = run([str(with_column), tables[1]], tmp_path / "own")["numbers"]
    assert again["pairs"][0]["in_clusters"] == results[0]["pairs"][0]["in_clusters"]
    assert "Within clusters (2 clusters with at least 10 rows)" in (tmp_path / "own" / "agreement.html").read_text()


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("nowhere.csv", None, r"--clusters=\S*nowhere\.csv: no such file"),
        ("c.parquet", {"topic": [1, 2]}, r"c\.parquet: has no column cluster"),
        ("c.parquet", {"cluster": [1, 2, 3]}, "has clusters of 3 rows, and the tables have 2"),
        ("c.parquet", {"cluster": [1, None]}, "1 rows have an empty cluster"),
        ("c.parquet", {"cluster": [1, 2], "index": [5, 6]}, "has clusters of 2 rows, and the tables have 2"),
    ],
)
def test_clusters_that_do_not_fit_are_refused(tmp_path, name, columns, message):
    if columns:
        pq.write_table(pa.table(columns), tmp_path / name)
    with pytest.raises(UserError, match=message):
        read_clusters(f"{tmp_path}/{name}", np.arange(2))


def test_text_clusters_are_taken_too(tmp_path):
    (tmp_path / "c.csv").write_text("cluster\nqa\nchat\nqa\n")
    assert read_clusters(f"{tmp_path}/c.csv", np.arange(3)).tolist() == [1, 0, 1]


@pytest.fixture
def texts(tmp_path):
    """20 rows and two scorers that rank them from the last to the first. Writes the rows, changed.

    Rows 15 and 16 have the same content, and 17 and 18 all words but one; row 19 has no answer.
    """

    def write(name="rows.jsonl", count=20):
        numbers = [*range(16), 15, 18, 18, 19]
        rows = [{"instruction": " ".join(f"w{n}x{k}" for k in range(20)), "output": "x" * (n + 1)} for n in numbers]
        rows[17]["output"], rows[19]["output"] = "y", " "
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        return str(tmp_path / name)

    ppl = np.stack([np.full(20, 100.0), 99 - np.arange(20) / 2])
    np.savez(tmp_path / "p.npz", one=ppl[:, ::-1], other=ppl[:, ::-1] - 1)
    return write


def test_with_the_dataset_repeated_rows_and_lengths_are_known_and_empty_answers_left_out(texts, tmp_path, capsys):
    values = run([f"{tmp_path}/p.npz"], tmp_path / "out", [25], dataset=texts())["numbers"]
    entry = next(entry for entry in values["diagnosis"] if entry["metric"] == "lp_app")
    assert values["n_defined"] == entry["n"] == 19
    # 25% of 19 rows: 18, 17, 16, 15, 14. Row 16 repeats 15; of the four contents, that of 18 is nearly that of 17.
    (low,) = entry["lowest"]
    counts = {name: low[name] for name in ("rows", "duplicates", "near_duplicates", "near_duplicates_among")}
    assert counts == {"rows": 5, "duplicates": 1, "near_duplicates": 1, "near_duplicates_among": 4}
    length = [*range(1, 17), 16, 1, 19]
    assert entry["spearman"]["response_characters"] == pytest.approx(spearmanr(length, range(19, 0, -1)).statistic)
    show_diagnosis(values)
    printed = " ".join(capsys.readouterr().out.split())
    assert "near-duplicate in lowest 25%" in " ".join(word for word in printed.split() if set(word) - set("│┃"))
    assert "1, 1 of 5" in printed
    html = (tmp_path / "out" / "agreement.html").read_text()
    assert '<th class="n">similar</th>' in html
    without = run([f"{tmp_path}/p.npz"], tmp_path / "without", [25])["numbers"]
    assert without["n_defined"] == 20
    assert "near_duplicates" not in without["diagnosis"][0]["lowest"][0]
    assert "add --dataset FILE" in (tmp_path / "without" / "agreement.html").read_text()


def test_a_dataset_with_other_rows_is_refused(texts, tmp_path):
    with pytest.raises(UserError, match=r"have 20 rows, index 0 to 19; dataset few\.jsonl has 3") as caught:
        run([f"{tmp_path}/p.npz"], tmp_path / "out", dataset=texts("few.jsonl", 3))
    assert caught.value.name == f"{tmp_path}/p.npz:one"
    with pytest.raises(UserError) as caught:
        run([f"{tmp_path}/p.npz"], tmp_path / "out", dataset=f"{tmp_path}/nowhere.jsonl")
    assert (caught.value.name, caught.value.value) == ("--dataset", f"{tmp_path}/nowhere.jsonl")
    assert not (tmp_path / "out").exists()


def test_tables_in_another_order_than_the_dataset_are_refused(tmp_path):
    rows = [{"id": id, "instruction": "Add.", "output": id} for id in "abc"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("one", "other"):
        (tmp_path / f"{name}.csv").write_text("id,nll_0,nll_1\nc,3,1\nb,3,2\na,2,1\n")
    with pytest.raises(UserError, match=r"row 0 has id c, but row 0 of dataset rows\.jsonl has a"):
        run([f"{tmp_path}/one.csv", f"{tmp_path}/other.csv"], tmp_path / "out", dataset=f"{tmp_path}/rows.jsonl")


def test_alpacas_released_perplexities_have_the_published_agreement_and_diagnosis(shared_data, tmp_path):
    tables = [f"{shared_data}/perplexities_alpaca.npz:{name}" for name in ("opt-350m", "opt-13b")]
    values = run(tables, tmp_path / "out", dataset=f"{shared_data}/alpaca.jsonl.xz")["numbers"]
    pairs = {pair["metric"]: pair for pair in values["pairs"] if pair["rows"] == "defined"}
    assert [f"{pairs[name]['spearman']:.3f}" for name in ("lp_app", "lp_app_nll")] == ["0.888", "0.869"]
    assert [f"{pairs[name]['lowest'][0]['share']:.3f}" for name in ("lp_app", "lp_app_nll")] == ["0.547", "0.543"]
    lp_app = next(entry for entry in values["diagnosis"] if entry["metric"] == "lp_app")
    assert f"{lp_app['spearman']['response_characters']:.2f}" == "-0.88"
    assert f"{lp_app['spearman']['nll_0']:.2f}" == "0.61"


def test_the_command_ends_with_its_run_folder(scores, tmp_path, monkeypatch, capsys):
    tables = [str(scores("a")), str(scores("b", seed=1, epochs=1))]
    monkeypatch.chdir(tmp_path)
    main([*tables, "--pct", "10,25"])
    out = capsys.readouterr().out.splitlines()
    folder = next((tmp_path / "runs" / "agreement").iterdir())
    assert out[-1] == str(folder)
    assert any("lowest 25%" in line for line in out)
    assert any("What the scores correlate with" in line for line in out)
    assert any("b has 1: LP_app only." in line for line in out)
    assert strict(folder / "result.json")["pct"] == [10, 25]


@pytest.mark.parametrize("reverse", [False, True])
def test_what_one_of_the_tables_does_not_know_is_a_dash(scores, tmp_path, capsys, reverse):
    folder = scores("known")
    columns = pq.read_table(folder / "scores.parquet", columns=["index", "nll_0", "nll_1"])
    pq.write_table(columns, tmp_path / "plain.parquet")
    tables = [str(folder), str(tmp_path / "plain.parquet")]
    main([*(reversed(tables) if reverse else tables), "--pct", "10", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "known, rising, duplicate" in " ".join(printed.split())
    assert printed.splitlines()[-1] == str(tmp_path / "out")


def test_the_module_runs_without_torch_or_lightning(scores):
    code = (
        "import sys; from lpsel.cli import console; sys.argv[1:] = ['agreement', '--help']\n"
        "try: console()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr
