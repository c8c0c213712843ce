"""A run folder belongs to one configuration."""

import pytest

from lpsel.asked import Asked
from lpsel.errors import UserError
from lpsel.files import write_json


@pytest.mark.parametrize(("done", "state"), [(True, "a"), (False, "an unfinished")])
def test_a_folder_of_another_configuration_is_refused_with_the_difference(tmp_path, done, state):
    ours = Asked("train", {"pct": 5, "scorer": {"name": "opt-350m"}, "seed": 42})
    Asked("train", {"pct": 10, "scorer": {"name": "tiny"}, "seed": 42}).keep(tmp_path)
    if done:
        write_json(tmp_path / "result.json", {})
    with pytest.raises(UserError) as refused:
        ours.check(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}: holds {state} run with pct=10, scorer.name=tiny; this one has pct=5, scorer.name=opt-350m; give "
        "another hydra.run.dir (in a sweep hydra.sweep.dir), or delete the folder."
    )


def test_the_same_configuration_may_go_on(tmp_path):
    ours = Asked("train", {"pct": 5})
    ours.keep(tmp_path)
    ours.check(tmp_path)
