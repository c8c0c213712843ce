"""`lpsel votes`: from files of votes to win rates, intervals and tables."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from lpsel.commands.votes import main, run
from lpsel.errors import UserError
from lpsel.evaluation.imported import read_judgements
from lpsel.evaluation.judgements import combined
from lpsel.judging.human import HumanJudge, read_key
from lpsel.judging.judge import Pair

PAIRS = [Pair(f"p{i}", f"prompt {i}", "old" * (i + 1), "newer", "vicuna", "writing") for i in range(4)]


@pytest.fixture
def key(tmp_path):
    folder = tmp_path / "runs" / "evaluate" / "now"
    folder.mkdir(parents=True)
    return HumanJudge(seed=5).write(PAIRS, folder, baseline="opt-125m", model="opt-350m")[1]


@pytest.fixture
def votes(tmp_path, key):
    """Writes a file of votes: for every pair w, t or l (of the model), s for skip, or a space for no vote."""
    secret = read_key(key)

    def write(annotator, said, minute=0, name=None):
        entries = []
        for pair, letter in enumerate(said):
            if letter != " ":
                model = secret.pairs[pair].a
                side = {"w": "a" if model == "model" else "b", "l": "b" if model == "model" else "a"}
                choice = side.get(letter) or {"t": "tie", "s": "skip"}[letter]
                entries.append({"pair": pair, "vote": choice, "at": f"2026-01-01T12:{minute:02}:00.000Z"})
        path = tmp_path / f"{name or annotator}.json"
        path.write_text(json.dumps({"page": secret.page, "annotator": annotator, "votes": entries}))
        return path

    return write


def test_figures_by_hand(votes, key, tmp_path):
    #        pair 0     1        2              3
    # Ann    win        win      loss           -
    # Bob    win        tie      skipped        -
    # Cleo   loss       -        tie            -
    # most   win        shared   shared         -
    # mean   1 2/3      1.75     1.25           -
    given = [votes("Ann", "wwl "), votes("Bob", "wts "), votes("Cleo", "l t ")]
    result = run(given, key, tmp_path / "out")
    assert [result[k] for k in ("n", "wins", "ties", "losses", "failed", "pairs", "pairs_without_votes")] == [
        3, 1, 2, 0, 0, 4, 1,
    ]  # fmt: skip
    assert result["win_rate"] == pytest.approx(100 * 2 / 3)
    # preferences 1, .5, .5: variance 1/12
    assert result["standard_error"] == pytest.approx(100 * (1 / 12 / 3) ** 0.5)
    assert 50 <= result["ci_low"] < result["win_rate"] < result["ci_high"] <= 100
    people = {person["name"]: person for person in result["annotators"]}
    figures = ("votes", "skipped", "replaced", "wins", "ties", "losses", "win_rate")
    assert [people["Ann"][k] for k in figures] == pytest.approx([3, 0, 0, 2, 0, 1, 100 * 2 / 3])
    assert [people["Bob"][k] for k in figures] == [3, 1, 0, 1, 1, 0, 75]
    assert [people["Cleo"][k] for k in figures] == [2, 0, 0, 0, 1, 1, 25]
    assert result["mean_of_votes"]["win_rate"] == pytest.approx(100 * (2 / 3 + 0.75 + 0.25) / 3)
    # Pairs with several votes: WWL, WT, LT. Coincidences c != k: 2 of W and L, 2 of W and T, 2 of L and T, so 6 of
    # n = 7, with 3 W, 2 T, 2 L: 1 - 6 x 6 / (49 - 9 - 4 - 4)
    assert result["agreement"]["krippendorff_alpha"] == pytest.approx(1 - 6 * 6 / 32)
    # Ordered L, T, W with 2, 2, 3 votes: ranks 1, 3, 5.5, distances 4, 6.25, 20.25. Two coincidences of each kind:
    # 2 x 30.5 of 2 x (4 x 4 + 6 x 6.25 + 6 x 20.25)
    assert result["agreement"]["krippendorff_alpha_ordinal"] == pytest.approx(1 - 6 * 61 / 350)
    assert result["agreement"]["pairs_with_several_votes"] == 3
    assert (result["model_mean_chars"], result["baseline_mean_chars"]) == (5, 6)
    assert (result["baseline"], result["model"]) == ("opt-125m", "opt-350m")


def test_the_tables(votes, key, tmp_path):
    run([votes("Ann", "wws "), votes("Ann", "l", minute=5, name="later"), votes("Bob", "wt")], key, tmp_path / "out")
    secret = read_key(key)
    rows = pq.read_table(tmp_path / "out" / "judgements.parquet").to_pylist()
    assert [(r["annotator"], r["id"], r["preference"], r["counted"]) for r in rows] == [
        ("Ann", "p0", 2, False),
        ("Ann", "p1", 2, True),
        ("Ann", "p2", None, True),
        ("Ann", "p0", 1, True),
        ("Bob", "p0", 2, True),
        ("Bob", "p1", 1.5, True),
    ]
    for row in rows:
        pair = secret.pairs[int(row["id"][1:])]
        assert row["order"] == ("model_first" if pair.a == "model" else "baseline_first")
        assert (row["prompt_set"], row["category"]) == ("vicuna", "writing")
    outcomes = pq.read_table(tmp_path / "out" / "outcomes.parquet").to_pylist()
    assert [(r["id"], r["votes"], r["preference"], r["mean_preference"]) for r in outcomes] == [
        ("p0", 2, 1.5, 1.5),
        ("p1", 2, 1.5, 1.75),
        ("p2", 0, None, None),
    ]
    names = ("judge", "model", "baseline", "model_chars", "baseline_chars", "prompt_set", "category")
    assert [outcomes[1][name] for name in names] == ["people", "opt-350m", "opt-125m", 5, 6, "vicuna", "writing"]


def test_a_later_vote_replaces_an_earlier_one(votes, key, tmp_path, capsys):
    early, late = votes("Ann", "wwww"), votes("Ann", "ll", minute=9, name="late")
    main([str(late), str(early), "--key", str(key), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "Ann changed 2 votes; the latest vote on a pair counts." in printed
    assert printed.splitlines()[-2:] == [f"Next: lpsel report {tmp_path}/out", f"{tmp_path}/out"]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [result[k] for k in ("wins", "losses")] == [2, 2]
    assert result["annotators"][0]["replaced"] == 2

    same = run([early, early], key, tmp_path / "same")
    assert same["annotators"][0]["replaced"] == 0, "the same file twice"


def test_pairs_skipped_by_all_have_failed_and_pairs_without_votes_have_not(votes, key, tmp_path):
    result = run([votes("Ann", "ws"), votes("Bob", "ws")], key, tmp_path / "out")
    assert [result[k] for k in ("n", "failed", "pairs_without_votes")] == [1, 1, 2]
    assert (result["ci_low"], result["standard_error"]) == (None, None), "one pair has no spread"
    with pytest.raises(UserError, match=r"Ann\.json: has no votes except skipped pairs. Pass files with votes\."):
        run([votes("Ann", "ss")], key, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_unfinished_voting_is_not_diluted_by_equal_answers(tmp_path):
    # 100 prompts, 50 with equal answers; 10 of the others have votes, all for the model
    answers = [("same", "same") if i < 50 else ("old", "new") for i in range(100)]
    pairs = [Pair(f"p{i}", f"prompt {i}", *shown) for i, shown in enumerate(answers)]
    key = HumanJudge().write(pairs, tmp_path, baseline="b", model="m")[1]
    secret = read_key(key)
    chosen = [{"pair": i, "vote": "a" if pair.a == "model" else "b", "at": "2026-01-01T12:00:00Z"}
              for i, pair in enumerate(secret.pairs[:10])]  # fmt: skip
    (tmp_path / "ann.json").write_text(json.dumps({"page": secret.page, "annotator": "Ann", "votes": chosen}))
    result = run([tmp_path / "ann.json"], key, tmp_path / "out")
    assert [result[k] for k in ("n", "wins", "ties", "failed", "pairs_without_votes")] == [60, 10, 50, 0, 40]
    assert result["win_rate"] == result["mean_of_votes"]["win_rate"] == 75
    [judged] = read_judgements(tmp_path / "out" / "judgements.parquet")
    assert (judged.model, judged.baseline, judged.judge) == ("m", "b", "Ann")
    assert combined(judged.preference_NO).tolist() == [2.0] * 10


def test_the_interval_is_over_prompts(tmp_path):
    """Two people who always agree add no information about prompts."""
    many = [Pair(str(i), str(i), "x", "y") for i in range(60)]
    key_path = HumanJudge().write(many, tmp_path, baseline="b", model="m")[1]
    secret = read_key(key_path)
    said = np.random.default_rng(1).integers(0, 2, 60)
    files = []
    for name in ("Ann", "Bob"):
        entries = [{"pair": i, "vote": "ab"[v], "at": "2026-01-01T12:00:00Z"} for i, v in enumerate(said)]
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps({"page": secret.page, "annotator": name, "votes": entries}))
    both, one = run(files, key_path, tmp_path / "both"), run(files[:1], key_path, tmp_path / "one")
    for view in (both, both["mean_of_votes"], both["annotators"][1]):
        assert [view[k] for k in ("win_rate", "ci_low", "ci_high")] == [
            one[k] for k in ("win_rate", "ci_low", "ci_high")
        ]
    # The normal interval of a proportion: 1.96 x standard error on either side
    assert one["ci_high"] - one["ci_low"] == pytest.approx(2 * 1.96 * one["standard_error"], rel=0.1)
    assert both["agreement"]["krippendorff_alpha"] == pytest.approx(1)
    assert one["agreement"]["krippendorff_alpha"] is None


def test_the_key_is_found_by_the_hash_of_the_page(votes, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "runs" / "evaluate" / "another"
    other.mkdir()
    HumanJudge(seed=6).write(PAIRS, other, baseline="x", model="y")
    given = votes("Ann", "wwww")
    assert run([given])["key"] == str(key)
    (tmp_path / "key.json").write_bytes(key.read_bytes())
    assert run([given])["key"] == str(tmp_path / "key.json"), "next to the votes first"
    assert run([given], key.parent)["key"] == str(key), "a run folder stands for its key"
    with pytest.raises(
        UserError, match=r"Ann\.json: has votes on page \w{12}, but the key is for page \w{12}\. Pass votes on"
    ):
        run([given], other)
    monkeypatch.chdir("/")
    (tmp_path / "key.json").unlink()
    with pytest.raises(
        UserError, match=r"no key\.json of its page next to it or in runs/\*/\*. Pass --key RUN_FOLDER\."
    ):
        run([given])


def test_the_key_of_one_of_several_models_is_found(votes, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, pairs in (("opt-1.3b", PAIRS[:-1]), ("opt-350m", PAIRS)):
        folder = key.parent / "votes" / name
        folder.mkdir(parents=True)
        HumanJudge(seed=5).write(pairs, folder, baseline="opt-125m", model=name)
    given = votes("Ann", "wwww")
    key.unlink()
    assert run([given])["key"] == run([given], key.parent)["key"] == str(folder / "key.json")
    (folder / "key.json").unlink()
    with pytest.raises(UserError, match=r"Ann\.json: no key\.json of its page in .*now\. Pass --key RUN_FOLDER\."):
        run([given], key.parent)


def test_prompts_count_once_and_pairs_without_votes_have_failed_in_no_group(tmp_path):
    # Prompts 0 to 3 are in both sets, 4 to 7 in one of them; only pairs of koala have votes, all for the model.
    sets = {"koala": range(6), "vicuna": [0, 1, 2, 3, 6, 7]}
    pairs = [Pair(f"{name}/{i}", f"prompt {i}", "old", "new", name, "even" if i % 2 == 0 else "odd")
             for name, numbers in sets.items() for i in numbers]  # fmt: skip
    key = HumanJudge().write(pairs, tmp_path, baseline="b", model="m")[1]
    chosen = [{"pair": i, "vote": "a" if pair.a == "model" else "b", "at": "2026-01-01T12:00:00Z"}
              for i, pair in enumerate(read_key(key).pairs[:5])]  # fmt: skip
    again = read_key(key).pairs[6]  # prompt 0 once more
    chosen += [chosen[0] | {"pair": 6, "vote": "a" if again.a == "model" else "b"}]
    (tmp_path / "ann.json").write_text(json.dumps({"page": read_key(key).page, "annotator": "Ann", "votes": chosen}))
    result = run([tmp_path / "ann.json"], key, tmp_path / "out")
    counts = ("n", "wins", "failed")
    assert [result[k] for k in (*counts, "repeated", "pairs_without_votes")] == [5, 5, 0, 4, 6]
    assert [result["mean_of_votes"][k] for k in counts] == [5, 5, 0]
    groups = result["by_prompt_set"] | result["by_category"]
    assert {name: [group[k] for k in ("n", "failed")] for name, group in groups.items()} == {
        "koala": [5, 0], "vicuna": [1, 0], "even": [3, 0], "odd": [2, 0],
    }  # fmt: skip
    old = json.loads(key.read_text())
    for pair in old["pairs"]:
        del pair["text"]
    key.write_text(json.dumps(old))
    assert run([tmp_path / "ann.json"], key, tmp_path / "old")["n"] == 6, "a key that has no texts"


def test_a_prompt_that_occurs_twice_in_a_set_is_not_subtracted_twice(tmp_path):
    pairs = [Pair(f"p{i}", prompt, "old", "new", "vicuna", "qa") for i, prompt in enumerate(["a", "a", "b", "c", "c"])]
    key = HumanJudge().write(pairs, tmp_path, baseline="b", model="m")[1]
    page = read_key(key).page
    votes = [{"pair": pair, "vote": "tie", "at": "2026-01-01T12:00:00Z"} for pair in (0, 2)]
    (tmp_path / "ann.json").write_text(json.dumps({"page": page, "annotator": "Ann", "votes": votes}))
    result = run([tmp_path / "ann.json"], key, tmp_path / "out")
    for counted in (result, result["by_prompt_set"]["vicuna"], result["by_category"]["qa"]):
        assert (counted["n"], counted["failed"]) == (2, 0)
