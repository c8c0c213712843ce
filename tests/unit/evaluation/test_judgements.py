import gzip
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.errors import UserError
from lpsel.evaluation.imported import read_judgements
from lpsel.evaluation.judgements import aligned, combined, flip_rate, judges_agreement
from lpsel.evaluation.length_control import length_controlled_win_rate
from lpsel.evaluation.win_rate import pairwise_metrics

PREFERENCE = st.sampled_from([0.0, 1.0, 1.5, 2.0, math.nan]) | st.floats(1, 2)
# What the fit of alpaca_eval 0.6.6 gives for `length_controlled_minimal`; its liblinear stops at a tolerance of 1e-4.
MINIMAL = (
    84.709517, 66.343213, 25.773115, 19.549396, 12.290591, 9.713562, 30.695135, 9.953044, 6.341180, 73.533496,
    39.624065, 6.496353, 80.342858, 50.0, 18.398170, 4.160864, 4.321522, 21.135522, 17.154352, 9.308404, 65.797383,
)  # fmt: skip


def metrics_of(judged, **options):
    return pairwise_metrics(
        judged.preference_NO, model_chars_N=judged.model_chars_N, baseline_chars_N=judged.baseline_chars_N, **options
    )


@pytest.fixture(scope="module")
def alpaca_eval(shared_data):
    with gzip.open(shared_data / "alpaca_eval_annotations.json.gz") as file:
        return json.load(file)["entries"]


def annotations(entry):
    """The set as AlpacaEval writes it: answers of the recorded lengths."""
    return [
        {
            "instruction": f"Instruction {i}",
            "output_1": "b" * baseline,
            "generator_1": entry["baseline"],
            "dataset": "helpful_base" if i % 2 else "oasst",
            "output_2": "m" * model,
            "generator_2": entry["generator"],
            "annotator": entry["annotator"],
            "preference": preference,
            "raw_completion": None,
        }
        for i, (preference, model, baseline) in enumerate(
            zip(entry["preference"], entry["model_chars"], entry["baseline_chars"], strict=True)
        )
    ]


@pytest.mark.parametrize("i", range(21))
def test_published_results_are_reproduced(alpaca_eval, tmp_path, i):
    entry = alpaca_eval[i]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{**row} for row in annotations(entry)], indent=4))
    [judged] = read_judgements(path)
    assert (judged.model, judged.judge, judged.baseline) == (entry["generator"], entry["annotator"], entry["baseline"])
    found = metrics_of(judged, category_N=judged.category_N, resamples=200)
    published = entry["published"]
    for ours, theirs in (
        ("win_rate", "win_rate"),
        ("standard_error", "standard_error"),
        ("discrete_win_rate", "discrete_win_rate"),
    ):
        assert found[ours] == pytest.approx(published[theirs], rel=1e-9), ours
    assert {k: found[k] for k in ("n", "wins", "losses", "ties")} == {
        "n": published["n_total"],
        "wins": published["n_wins"],
        "losses": published["n_wins_base"],
        "ties": published["n_draws"],
    }
    assert found["n"] + found["failed"] == len(entry["preference"])
    assert sum(part["n"] for part in found["by_category"].values()) == found["n"]
    if len(entry["preference"]) == 805 and entry["generator"] in (entry["model"], "example"):
        # elsewhere the published length is of answers that the file does not have, or of another model
        assert int(found["model_mean_chars"]) == published["avg_length"]
    # 1e-4 of the fitted function is up to .07 points of the win rate
    assert found["length_controlled_minimal"] == pytest.approx(MINIMAL[i], abs=0.07)


def test_sets_in_one_compressed_file_are_separated(alpaca_eval, tmp_path):
    of_one_baseline = [entry for entry in alpaca_eval if entry["baseline"] == "text_davinci_003"]
    path = tmp_path / "annotations.json.gz"
    path.write_bytes(gzip.compress(json.dumps([row for e in of_one_baseline for row in annotations(e)]).encode()))
    found = read_judgements(path)
    assert [judged.model for judged in found] == [entry["generator"] for entry in of_one_baseline]
    for judged, entry in zip(found, of_one_baseline, strict=True):
        expected = [math.nan if p is None else p for p in entry["preference"]]
        np.testing.assert_array_equal(judged.preference_NO[:, 0], expected)


def test_the_length_controlled_interval_of_a_published_set(alpaca_eval):
    entry = next(entry for entry in alpaca_eval if entry["model"] == "llama-2-7b-chat-hf")
    found = length_controlled_win_rate(entry["preference"], entry["model_chars"], entry["baseline_chars"], seed=1)
    assert found.low == pytest.approx(10.2, abs=0.4)
    assert found.high == pytest.approx(27.1, abs=0.4)


def our_rows():
    return [
        {"id": "p1", "order": "baseline_first", "verdict": 2.0, "prompt_set": "koala", "model_chars": 5},
        {"id": "p2", "order": "baseline_first", "verdict": 1.0, "prompt_set": "koala", "model_chars": 6},
        {"id": "p1", "order": "model_first", "verdict": 2.0, "prompt_set": "koala", "model_chars": 5},
        {"id": "p2", "order": "model_first", "verdict": None, "prompt_set": "koala", "model_chars": 6},
        {"id": "p3", "order": "model_first", "verdict": 1.5, "prompt_set": "vicuna", "model_chars": 7},
    ]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_tables_with_orders(tmp_path, kind):
    path = tmp_path / f"judgements.{kind}"
    rows = our_rows()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    [judged] = read_judgements(path)
    assert judged.ids == ["p1", "p2", "p3"]
    np.testing.assert_array_equal(judged.preference_NO, [[2, 2], [1, math.nan], [math.nan, 1.5]])
    assert judged.prompt_set_N == ["koala", "koala", "vicuna"]
    np.testing.assert_array_equal(judged.model_chars_N, [5, 6, 7])
    assert np.isnan(judged.baseline_chars_N).all()


def test_words_are_verdicts(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("id,verdict\n1,win\n2,Tie\n3,loss\n4,\n5,model\n6,baseline\n")
    [judged] = read_judgements(path)
    np.testing.assert_array_equal(judged.preference_NO[:, 0], [2, 1.5, 1, math.nan, 2, 1])


def test_models_and_judges_are_separated(tmp_path):
    path = tmp_path / "several.jsonl"
    rows = [
        {"id": i, "model": model, "judge": judge, "preference": 2}
        for model in ("a", "b")
        for judge in ("x", "y")
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(j.model, j.judge, len(j.ids)) for j in read_judgements(path)] == [
        ("a", "x", 3), ("a", "y", 3), ("b", "x", 3), ("b", "y", 3),
    ]  # fmt: skip


def test_judges_of_different_prompts_are_aligned(tmp_path):
    path = tmp_path / "judges.csv"
    path.write_text("judge,id,preference\nx,a,2\nx,b,1\ny,c,1\ny,b,1\n")
    both = aligned(read_judgements(path))
    np.testing.assert_array_equal(both["x"], [2, 1, math.nan])
    np.testing.assert_array_equal(both["y"], [math.nan, 1, 1])


def test_invalid_verdicts_count_as_failed_with_a_warning(tmp_path, caplog):
    path = tmp_path / "annotations.json"
    verdicts = [2, "x", 3.7, None, True, 10**400, [1]]
    path.write_text(json.dumps([{"instruction": str(i), "preference": p} for i, p in enumerate(verdicts)]))
    [judged] = read_judgements(path)
    found = pairwise_metrics(
        judged.preference_NO, model_chars_N=judged.model_chars_N, baseline_chars_N=judged.baseline_chars_N
    )
    assert (found["n"], found["failed"]) == (1, 6)
    [warning] = caplog.messages
    assert warning == f"{path}: 5 invalid verdicts count as failed, starting with preference 'x' in row 2"


@pytest.mark.parametrize("ending", ["json", "json.gz", "jsonl.xz", "csv"])
def test_preferences_without_ids_are_one_prompt_per_row(tmp_path, ending):
    import lzma

    # 2 wins (1.9 and 2), a tie in each of its two codes, a loss, one not judged: shares .9 1 .5 .5 0
    preference = [2, 1.9, 0, 1.5, 1, None]
    text = json.dumps([{"preference": p} for p in preference])
    if "jsonl" in ending:
        text = "".join(json.dumps({"preference": p}) + "\n" for p in preference)
    elif ending == "csv":
        text = "preference,model\n" + "".join(f"{'' if p is None else p},m\n" for p in preference)
    packed = {"gz": gzip.compress, "xz": lzma.compress}.get(ending.rpartition(".")[2], bytes)
    path = tmp_path / f"annotations.{ending}"
    path.write_bytes(packed(text.encode()))
    [judged] = read_judgements(path)
    found = pairwise_metrics(
        judged.preference_NO, model_chars_N=judged.model_chars_N, baseline_chars_N=judged.baseline_chars_N
    )
    assert [found[k] for k in ("n", "wins", "ties", "losses", "failed")] == [5, 2, 2, 1, 1]
    assert found["win_rate"] == pytest.approx(100 * 2.9 / 5)
    assert found["length_controlled_win_rate"] is None


def table(path, header, rows):
    path.write_text("\n".join([header, *rows]))
    return path


def test_prompts_judged_once_in_random_order_are_one_column(tmp_path, caplog):
    orders = np.random.default_rng(0).choice(["baseline_first", "model_first"], 100)
    rows = [f"p{i},{order},{2 if i < 70 else 1}" for i, order in enumerate(orders)]
    [judged] = read_judgements(table(tmp_path / "once.csv", "id,order,preference", rows))
    found = metrics_of(judged, resamples=100)
    assert [found[k] for k in ("n", "wins", "failed", "flip_rate")] == [100, 70, 0, None]
    assert "each prompt was judged in one order only" in caplog.text


def test_a_few_prompts_judged_in_both_orders_are_combined(tmp_path):
    rows = [f"p{i},{'ab'[i % 2]},2" for i in range(100)] + ["p0,b,1"]
    [judged] = read_judgements(table(tmp_path / "once.csv", "id,order,preference", rows))
    assert judged.preference_NO[:, 0].tolist() == [1.5] + [2] * 99


def test_no_prompt_with_a_verdict_in_both_orders_is_rejected(tmp_path):
    rows = [f"p{i},{order},{2 if order == 'a' else ''},m" for i in range(20) for order in "ab"]
    with pytest.raises(UserError) as raised:
        read_judgements(table(tmp_path / "half.csv", "id,order,preference,model", rows))
    assert raised.value.problem == "none of 20 prompts has a verdict on m in both orders"


def test_files_of_different_scales_are_imported_together(tmp_path, caplog):
    ours = table(tmp_path / "ours.csv", "id,preference,model", ["a,2,x", "b,1,x", "c,1.5,x"])
    unit = table(tmp_path / "unit.csv", "id,preference,model", ["a,1,y", "b,0,y", "c,0.5,y"])
    first, second = read_judgements([ours, unit])
    np.testing.assert_array_equal(first.preference_NO, second.preference_NO)
    assert "contains only 0" not in caplog.text
    read_judgements(table(tmp_path / "either.csv", "id,preference", ["a,1", "b,0"]))
    assert "contains only 0 (read as tie) and 1 (read as baseline win)" in caplog.text


def test_equal_answers_and_price_caps_are_read_from_files(tmp_path):
    rows = [{**ROW, "instruction": str(i), "output_1": "x", "output_2": "x" if i else "y"} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    [judged] = read_judgements(tmp_path / "a.json")
    assert judged.equal_N.tolist() == [False, True, True]
    assert not judged.unfinished
    rows = ["a,2,,false", "b,1.5,,true", "c,,price cap,false"]
    [judged] = read_judgements(table(tmp_path / "b.csv", "id,preference,failure,equal", rows))
    assert (judged.equal_N.tolist(), judged.unfinished) == ([False, True, False], True)


def test_judges_do_not_agree_on_answers_that_nobody_judged(tmp_path):
    for judge, verdict in (("x", 2), ("y", 1)):
        table(
            tmp_path / f"{judge}.csv",
            "id,preference,equal,judge",
            [f"a,{verdict},false,{judge}", f"b,1.5,true,{judge}"],
        )
    both = aligned(read_judgements([tmp_path / "x.csv", tmp_path / "y.csv"]))
    assert [values[1] for values in both.values()] == pytest.approx([math.nan] * 2, nan_ok=True)


def test_judges_of_several_files(tmp_path):
    for judge, verdicts in (("x", "212"), ("y", "221")):
        rows = [f"{i},{verdict},{judge}" for i, verdict in enumerate(verdicts)]
        (tmp_path / f"{judge}.csv").write_text("id,preference,judge\n" + "\n".join(rows))
    both = aligned(read_judgements([tmp_path / "x.csv", tmp_path / "y.csv"]))
    assert {judge: values.tolist() for judge, values in both.items()} == {"x": [2, 1, 2], "y": [2, 2, 1]}


def test_missing_names_are_filled_in(tmp_path):
    path = tmp_path / "annotations.json"
    rows = [{**ROW, "instruction": str(i)} for i in range(3)]
    del rows[1]["generator_1"], rows[1]["generator_2"], rows[2]["generator_1"]
    path.write_text(json.dumps(rows))
    [judged] = read_judgements(path)
    assert (judged.model, judged.baseline, len(judged.ids)) == ("m", "base", 3)


ROW = {"instruction": "a", "generator_1": "base", "generator_2": "m", "preference": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"preference"', "must be a list of objects"),
        ('{"preference": 2}', "no list named data or judgements"),
        ("[2, 1]", "a row must be a JSON object"),
        ("[]", "0 rows, none with a verdict"),
        ([{**ROW, "preference": None}], "1 rows, none with a verdict. Use a file with verdicts."),
        (
            [{"instruction": "a"}],
            "row 1: no column preference or verdict, only instruction. Use 1 (the baseline",
        ),
        ([{"preference": 2, "order": "model_first"}], "row 1: no id and no instruction"),
        ([ROW, {"preference": 2}], "row 2: no id and no instruction"),
        (
            [ROW, {**ROW, "generator_2": "n"}, {**ROW, "generator_2": None}],
            "some rows have no model, and others have m or n. Add the model to every row.",
        ),
        ([{**ROW, "preference": "x"}], "no valid verdict, starting with preference 'x' in row 1. Use 1 (the baseline"),
        ([{**ROW, "preference": 3.7}], "no valid verdict, starting with preference 3.7 in row 1. Use 1 (the baseline"),
        ([ROW, ROW], "two verdicts by the judge on m for the same prompt, 'a'. Remove one"),
        ([ROW, {**ROW, "generator_1": "other"}], "contains two baselines, base and other. Use one file per baseline."),
        (
            [{**ROW, "model_chars": "long"}],
            "row 1: model_chars=long: must be a number of characters. Leave it empty if unknown.",
        ),
        ([{**ROW, "model_chars": -3}], "model_chars=-3: must be a number of characters"),
        ([{**ROW, "model_chars": "inf"}], "model_chars=inf: must be a number of characters"),
    ],
)
def test_errors_are_one_line_with_the_location(tmp_path, content, message):
    path = tmp_path / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as raised:
        read_judgements(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_files_and_unknown_extensions(tmp_path):
    with pytest.raises(
        UserError, match=r"^judgements=.*gone\.json: no such file\. Check the name and the current folder\.$"
    ):
        read_judgements(tmp_path / "gone.json")
    with pytest.raises(
        UserError, match=r"^judgements=\[\]: contains no file\. Set judgements=FILE or judgements=\[FILE,FILE\]\.$"
    ):
        read_judgements([])
    with pytest.raises(UserError, match=r"unknown file extension\. Use \.json"):
        read_judgements(tmp_path / "verdicts.txt")


def test_verdicts_that_differ_between_the_orders_are_a_tie():
    both = [(2, 2), (2, 1.5), (0, 2), (1.5, 0), (2, 1), (1, 2), (1, 1.5), (1, 1), (2, None), (None, None)]
    expected = [2, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1, math.nan, math.nan]
    np.testing.assert_array_equal(combined(both), expected)


def test_fractional_preferences_are_averaged_where_the_orders_agree():
    np.testing.assert_allclose(combined([(1.9, 1.6), (1.2, 1.0), (1.2, 1.6), (1.9, 1.5)]), [1.75, 1.1, 1.5, 1.5])


@given(st.lists(st.tuples(PREFERENCE, PREFERENCE), min_size=1))
def test_a_prompt_is_combined_by_its_own_preferences(preference):
    one_by_one = np.concatenate([combined([pair]) for pair in preference])
    np.testing.assert_array_equal(combined(preference), one_by_one)


def test_a_single_order_stays_as_it_is():
    np.testing.assert_array_equal(combined([2, 0, None, 1.25]), [2, 1.5, math.nan, 1.25])


def test_flips_are_different_verdicts_in_the_two_orders():
    # win/win, win/loss, win/tie, tie/tie, and one judged in one order only: 2 of 4
    assert flip_rate([(2, 2), (2, 1), (2, 1.5), (1.5, 0), (2, None)]) == 50
    assert flip_rate([(1.9, 1.6)]) == 0
    assert flip_rate([(2, None)]) is None
    assert flip_rate([2, 1]) is None


def test_kappa_by_hand():
    # 10 prompts: 4 both win, 3 both lose, 1 both tie, 2 disagree: .8 observed.
    a = [2, 2, 2, 2, 1, 1, 1, 1.5, 2, 1]
    b = [2, 2, 2, 2, 1, 1, 1, 0.0, 1, 2]
    # each: 5 wins, 4 losses, 1 tie: chance .25 + .16 + .01 = .42
    [found] = judges_agreement({"a": [*a, None], "b": [*b, 2]})
    assert found == {
        "judges": ["a", "b"],
        "n": 10,
        "agreement": pytest.approx(80),
        "kappa": pytest.approx((0.8 - 0.42) / (1 - 0.42)),
        # a win and a loss differ by 1, a tie by 1/2: .2 observed, by chance .4 + .05 + .04
        "weighted_kappa": pytest.approx(1 - 0.2 / 0.49),
    }


def test_agreement_of_every_two_judges_and_undefined_values():
    found = judges_agreement({"a": [2, 2], "b": [2, 2], "c": [None, None]})
    assert [pair["judges"] for pair in found] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert (found[0]["agreement"], found[0]["kappa"]) == (100, None)  # only one verdict occurs
    assert found[1] == {"judges": ["a", "c"], "n": 0, "agreement": None, "kappa": None, "weighted_kappa": None}
