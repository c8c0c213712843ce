"""The start of a sweep."""

import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import read_write

from lpsel.config import configured
from lpsel.distributed import at_end
from lpsel.storage import write_json
from lpsel.sweep import SweepCallback, read_outcomes


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a sweep as Hydra does; returns the folder of its outcomes."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setattr(SweepCallback, "sweep", None)
    with configured("train"):
        config = compose("train", overrides=[f"hydra.sweep.dir={tmp_path}/sweep"], return_hydra_config=True)

    def begin(*overrides):
        with read_write(config.hydra):
            config.hydra.overrides.task = list(overrides)
        SweepCallback().on_multirun_start(config)
        return tmp_path / "sweep" / ".jobs"

    with at_end:
        yield begin


def test_a_second_call_of_a_running_sweep_keeps_the_outcomes_of_the_first(start):
    outcome = start() / "0.json"
    outcome.write_text("{}")
    start()
    assert outcome.exists()
    at_end.close()
    start()
    assert not outcome.exists(), "the first call has ended"


def test_another_sweep_is_rejected_while_one_is_running_in_the_folder(start, tmp_path, capsys, monkeypatch):
    """Their jobs have the same numbers, so they would overwrite each other's outcomes."""
    monkeypatch.setenv("LPSEL_COMMAND", "train")
    outcome = start("pct=5,10") / "0.json"
    outcome.write_text("{}")
    first = at_end.pop_all()
    start("pct=5,10", "trainer=cpu")
    first.close()
    with pytest.raises(SystemExit):
        start("pct=20,30")
    assert f"hydra.sweep.dir={tmp_path}/sweep: another sweep is running in it (pct-" in capsys.readouterr().err
    assert outcome.exists(), "the second call of the first sweep is still running"
    at_end.close()
    start("pct=20,30")
    assert not outcome.exists()


def test_a_folder_of_repeated_jobs_is_finished_if_one_of_them_is(start):
    folder = start()
    for number, (run, state) in enumerate([("a", "failed"), ("b", "failed"), ("a", "done"), ("a", "already finished")]):
        write_json(folder / f"{number}.json", {"number": number, "folder": run, "state": state})
    assert [(o.folder, o.state) for o in read_outcomes(SweepCallback.sweep)] == [("a", "done"), ("b", "failed")]
