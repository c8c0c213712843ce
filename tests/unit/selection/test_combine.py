"""selection=combine: weighted means of ranks."""

import numpy as np
import pytest
from scipy.stats import rankdata

from lpsel.commands.selection_inputs import combined
from lpsel.errors import UserError
from lpsel.scoring.metrics import learning_percentage
from lpsel.scoring.read import read_scores
from lpsel.selection.select import select


def test_the_score_is_the_weighted_mean_of_ranks(make_table):
    # LP_app_nll .4 .1 .3 .2 has ranks 3 0 2 1 of 3; the quality, highest first, 0 1 2 3.
    table = make_table(np.exp([[1.0] * 4, [0.6, 0.9, 0.7, 0.8]]), columns={"quality": np.array([9.0, 7, 5, 3])})
    spec = combined(name="combine", combine={"lp_app_nll": 1, "quality": 0.5})
    assert (spec.epochs, list(spec.columns)) == (1, ["quality"])
    selection = select(table, spec, 50, 0)
    assert selection.score == pytest.approx([(3 + 0) / 4.5, (0 + 0.5) / 4.5, (2 + 1) / 4.5, (1 + 1.5) / 4.5])
    assert np.flatnonzero(selection.selected).tolist() == [1, 3]
    reversed_column = combined(name="combine", combine={"lp_app_nll": 1, "quality": -0.5})
    assert select(table, reversed_column, 50, 0).score == pytest.approx(
        [(3 + 1.5) / 4.5, (0 + 1) / 4.5, (2 + 0.5) / 4.5, (1 + 0) / 4.5]
    )


def test_ties_share_their_mean_rank_and_rows_that_a_part_does_not_rank_have_no_score(make_table):
    quality = np.array([1.0, 1, 5, np.nan, 3, 3])
    noprompt = np.array([4.0, 4, 4, 4, 4, 1])  # IFD of 2/4, and of 2, which the rule leaves out
    columns = {"quality": quality, "nll_0_noprompt": noprompt}
    table = make_table(np.exp([[2.0] * 6]), response_tokens=[1, 1, 1, 1, 1, 1], columns=columns)
    selection = select(table, combined(name="combine", combine={"ifd": 1, "quality": 1}), 50, 0)
    # Four rows are ranked by both: IFD ties at rank 1.5 of 3, quality 5 first, 3, then the two at 2.5.
    ranks = [(1.5 + 2.5) / 6, (1.5 + 2.5) / 6, 1.5 / 6, np.nan, (1.5 + 1) / 6, np.nan]
    assert selection.score == pytest.approx(ranks, nan_ok=True)
    assert selection.counts == {"IFD of 1 or more": 1, "score is undefined": 1}


def test_one_part_selects_as_on_its_own(make_table, make_spec):
    ppl = np.exp(np.random.default_rng(0).random((4, 200)) * 3)
    table = make_table(ppl, cluster=np.arange(200) % 7)
    for name in ("lp", "perplexity", "learning_speed"):
        on_its_own, part = (
            select(table, spec, 15, 0).selected
            for spec in (make_spec(name), combined(name="combine", combine={name: 2.0}))
        )
        assert (on_its_own == part).all()


def test_more_epochs_than_the_parts_need_are_kept():
    assert combined(name="combine", combine={"lp_app": 1}, epochs=3).epochs == 3
    assert combined(name="combine", combine={"lp_app": 1, "lp": 1}, epochs=2).epochs == 3
    assert combined(name="combine", combine={"longest": 1}).epochs is None
    assert combined(name="combine", combine={"longest": 1}, known="drop").epochs == 1


def test_a_part_that_ranks_by_length_needs_token_counts(make_table):
    table = make_table([[4.0, 4.0], [2.0, 3.0]], tokens_known=False)
    with pytest.raises(UserError, match="selection=combine: these scores have no token counts"):
        select(table, combined(name="combine", combine={"lp_app": 1, "longest": 1}), 50, 0)


def test_a_column_may_look_like_a_number(make_table):
    table = make_table([[2.0] * 4], columns={"2024": np.array([1.0, 4, 2, 3])})
    selection = select(table, combined(name="combine", combine={2024: 1}), 50, 0)
    assert np.flatnonzero(selection.selected).tolist() == [1, 3]


def test_released_records_against_scipy(shared_data):
    shared_data("perplexities_dolly.npz")
    table = read_scores(shared_data.folder / "perplexities_dolly.npz", "opt-350m")
    selection = select(table, combined(name="combine", combine={"lp_app": 1, "learning_speed": 3}), 10, 0)
    known = table.response_tokens > 0
    relative = 1 - table.nll[1:, known].mean(axis=0) / table.nll[0, known]
    ranks = rankdata(learning_percentage(table, "lp_app")[known]) + 3 * rankdata(relative)
    assert selection.score[known] == pytest.approx((ranks - 4) / 4 / (known.sum() - 1))


@pytest.mark.parametrize(
    ("combine", "name", "problem"),
    [
        (None, "selection.combine", "needs rules or columns with their weights"),
        ({}, "selection.combine", "needs rules or columns with their weights"),
        ({"lp": 0}, "selection.combine.lp", "must be a number other than 0"),
        ({"lp": "much"}, "selection.combine.lp", "must be a number other than 0"),
        ({"k_center": 1}, "selection.combine", "picks rows one after another and has no ranks"),
        ({"score_column": 1}, "selection.combine", "cannot be combined"),
        ({"buckets_high": 1}, "selection.combine", "sets selection.bucket=high, which parts cannot"),
        ({"lp_app_nll_matched": 1}, "selection.combine", "sets selection.length=matched, which parts cannot"),
    ],
)
def test_what_cannot_be_combined_is_an_error(combine, name, problem):
    with pytest.raises(UserError) as caught:
        combined(name="combine", combine=combine)
    assert (caught.value.name, caught.value.problem) == (name, problem)
