"""No command deletes or overwrites files that it did not write."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "wrong_input"))


@pytest.fixture
def lpsel(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in a folder."""
    from in_process import run

    def here(*arguments, cwd=tmp_path):
        with monkeypatch.context() as inside:
            inside.chdir(cwd)
            inside.setenv("CUDA_VISIBLE_DEVICES", "")
            inside.setenv("LPSEL_CACHE", str(tmp_path / "cache"))
            return run(shlex.join(map(str, arguments)), capsys)

    return here


def contents(folder):
    """Path -> bytes of every file, without the cache and the new run folder `evaluated`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("cache", "evaluated")
    }


@pytest.fixture
def rejected(lpsel, tmp_path):
    """Run a command that must fail in one line and leave every file as it was; returns the line."""

    def run(*arguments, cwd=tmp_path):
        before = contents(tmp_path)
        end = lpsel(*arguments, cwd=cwd)
        assert contents(tmp_path) == before
        assert end.status == 2, end
        assert end.err.count("\n") == 1, end.err
        assert end.err.startswith(f"lpsel {arguments[0]}: ")
        return end.err

    return run


@pytest.fixture
def selected(tmp_path):
    """A finished run of select, with its inputs in a folder of their own."""
    from lpsel.commands.job import run

    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "rows.jsonl").write_text("".join(f'{{"instruction": "Q{n}", "output": "A"}}\n' for n in range(8)))
    (inputs / "scores.csv").write_text("ppl_0,ppl_1\n" + "".join(f"10,{n + 1}\n" for n in range(8)))
    given = ["dataset=local", f"dataset.path={inputs}/rows.jsonl", f"scores={inputs}/scores.csv", "tracker=none"]
    run("select", [*given, "dataset.license=mit", "cluster=none", "pct=50"], tmp_path / "runs" / "a")
    return tmp_path / "runs" / "a"


@pytest.fixture
def thesis(tmp_path):
    """A folder of the user's with nothing of ours in it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    return folder


@pytest.mark.parametrize("command", ["publish", "report"])
class TestFolderThatIsReplaced:
    def test_a_folder_with_files_of_the_user_is_rejected(self, command, rejected, selected, thesis):
        assert f"--out={thesis}" in rejected(command, selected, "--out", thesis)

    def test_the_working_directory_is_rejected(self, command, rejected, selected, tmp_path):
        empty = tmp_path / "empty"
        empty.mkdir()
        assert "working directory. Name another folder" in rejected(command, selected, "--out", ".", cwd=empty)
        assert "Name another folder" in rejected(command, "a", "--out", ".", cwd=selected.parent)

    def test_the_run_and_what_contains_it_are_rejected(self, command, rejected, selected, tmp_path):
        for out in (selected, selected.parent, tmp_path):
            assert f"contains {selected}" in rejected(command, selected, "--out", out)

    def test_a_file_is_rejected(self, command, rejected, selected, thesis):
        assert "is not a folder" in rejected(command, selected, "--out", thesis / "thesis.txt")

    def test_its_own_output_is_replaced_and_a_file_added_to_it_is_not_lost(self, command, lpsel, rejected, selected):
        out = selected.parent.parent / "out"
        out.mkdir()
        assert lpsel(command, selected, "--out", out).status is None
        first = contents(out)
        assert lpsel(command, selected, "--out", out).status is None
        assert contents(out).keys() == first.keys()
        (out / "notes.txt").write_text("mine")
        assert "notes.txt in it was not written by" in rejected(command, selected, "--out", out)

    def test_output_of_another_command_is_rejected(self, command, lpsel, rejected, selected):
        out = selected.parent.parent / "out"
        other = {"publish": "report", "report": "publish"}[command]
        assert lpsel(other, selected, "--out", out).status is None
        assert f"was not written by lpsel {command}" in rejected(command, selected, "--out", out)

    def test_a_page_or_card_of_the_user_does_not_make_it_ours(self, command, rejected, selected, thesis):
        (thesis / "index.html").write_text("<p>my home page</p>")
        (thesis / "README.md").write_text("---\ntags: [lpsel]\n---\n")
        assert f"was not written by lpsel {command}" in rejected(command, selected, "--out", thesis)


class TestRunFolderOfSmallCommands:
    @pytest.fixture
    def agreement(self, selected):
        inputs = selected.parent.parent / "inputs"
        (inputs / "others.csv").write_text("ppl_0,ppl_1\n" + "".join(f"10,{9 - n}\n" for n in range(8)))
        return "agreement", inputs / "scores.csv", inputs / "others.csv", "--out"

    def test_a_folder_of_something_else_is_rejected(self, agreement, rejected, selected, thesis, tmp_path):
        for out in (thesis, selected, tmp_path):
            assert f"--out={out}" in rejected(*agreement, out)

    def test_a_folder_with_an_input_is_rejected(self, agreement, rejected, tmp_path):
        assert f"contains {tmp_path}/inputs/scores.csv" in rejected(*agreement, tmp_path / "inputs")

    def test_its_own_is_used_again(self, agreement, lpsel, tmp_path):
        for _ in range(2):
            assert lpsel(*agreement, tmp_path / "agreed").status is None
        (tmp_path / "agreed" / "result.json").unlink()  # as an interrupted run leaves it
        assert lpsel(*agreement, tmp_path / "agreed").status is None

    def test_votes_rejects_a_folder_of_something_else(self, rejected, thesis, tmp_path):
        from lpsel.judging.human import HumanJudge, read_key
        from lpsel.judging.judge import Pair

        (tmp_path / "page").mkdir()
        pair = Pair(id="p0", prompt="Q", baseline="B", model="A")
        _, key = HumanJudge(seed=0).write([pair], tmp_path / "page", baseline="base", model="ours")
        vote = {"pair": 0, "vote": "a", "at": "2026-01-01T00:00:00Z"}
        votes = {"page": read_key(key).page, "annotator": "ann", "votes": [vote]}
        (tmp_path / "votes.json").write_text(json.dumps(votes))
        given = ("votes", tmp_path / "votes.json", "--key", key, "--out")
        assert f"--out={thesis}" in rejected(*given, thesis)
        assert f"contains {tmp_path / 'votes.json'}" in rejected(*given, tmp_path)


class TestRunFolder:
    @pytest.fixture
    def given(self, toy_model, instructions, tmp_path):
        instructions(rows=8)
        (tmp_path / "model").mkdir()
        shutil.copytree(toy_model, tmp_path / "model", dirs_exist_ok=True)
        (tmp_path / "model" / "note.txt").write_text("mine")
        return [
            "dataset.path=rows.jsonl", "trainer=cpu", "tracker=none", "selection=random", "cluster=none", "pct=50",
            "model.recipe.epochs=1",
        ]  # fmt: skip

    def test_the_base_model_in_it_is_not_replaced_by_the_trained_one(self, given, rejected, tmp_path):
        assert "model.path=model" in rejected("train", *given, "model.path=model", "hydra.run.dir=.")
        whole = f"model.path={tmp_path}/model"
        assert whole in rejected("train", *given, whole, f"hydra.run.dir={tmp_path}")

    def test_a_model_in_it_that_no_run_left_is_not_replaced(self, given, rejected, toy_model, tmp_path):
        for name in ("model", "adapter", "generations"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "note.txt").write_text("mine")
            error = rejected("train", *given, f"model.path={toy_model}", "hydra.run.dir=.")
            assert f"hydra.run.dir={tmp_path}: {name} in it is not from" in error
            assert "name another hydra.run.dir" in error
            shutil.rmtree(tmp_path / name)

    def test_a_result_of_another_command_does_not_make_it_ours(self, given, rejected, toy_model, tmp_path):
        (tmp_path / "result.json").write_text('{"command": "agreement"}')
        rejected("train", *given, f"model.path={toy_model}", "hydra.run.dir=.")
        shutil.rmtree(tmp_path / "model")
        assert "result.json in it is not" in rejected("train", *given, f"model.path={toy_model}", "hydra.run.dir=.")

    def test_rows_in_it_are_not_replaced_by_the_subset(self, given, rejected, toy_model, tmp_path):
        shutil.rmtree(tmp_path / "model")
        (tmp_path / "rows.jsonl").rename(tmp_path / "subset.jsonl")
        given = ["dataset.path=subset.jsonl", *given[1:], f"model.path={toy_model}"]
        assert "dataset.path=subset.jsonl" in rejected("train", *given, "hydra.run.dir=.")

    def test_its_own_model_is_not_the_base_of_the_next_run_in_it(self, given, lpsel, rejected, toy_model, tmp_path):
        run = tmp_path / "run"
        assert lpsel("train", *given, f"model.path={toy_model}", f"hydra.run.dir={run}").status is None
        (run / "run_config.json").unlink()
        whole = f"model.path={run}/model"
        assert whole in rejected("train", *given, whole, f"hydra.run.dir={run}")

    def test_rows_and_scores_may_be_in_it_and_the_same_command_runs_again(self, given, lpsel, toy_model, tmp_path):
        shutil.rmtree(tmp_path / "model")
        shutil.copytree(toy_model, tmp_path / "base")
        rows = (tmp_path / "rows.jsonl").read_bytes()
        asked = ("train", *given, "model.path=base", "hydra.run.dir=.")
        for _ in range(2):
            end = lpsel(*asked)
            assert end.status is None, end.err
        (tmp_path / "result.json").unlink()  # as a run that was killed
        assert lpsel(*asked).status is None
        assert (tmp_path / "rows.jsonl").read_bytes() == rows

    def test_an_input_whose_name_is_model_may_be_elsewhere(self, given, lpsel, tmp_path):
        (tmp_path / "work").mkdir()
        given = [f"dataset.path={tmp_path}/rows.jsonl", *given[1:], f"model.path={tmp_path}/model", "hydra.run.dir=."]
        for _ in range(2):
            end = lpsel("train", *given, cwd=tmp_path / "work")
            assert end.status is None, end.err

    def test_answers_and_verdicts_in_it_are_not_replaced(self, rejected, toy_model, instructions, tmp_path):
        instructions(rows=4)
        given = ["evaluate", f"model={toy_model}", "dataset.path=rows.jsonl", "trainer=cpu", "tracker=none"]
        (tmp_path / "generations").mkdir()
        (tmp_path / "generations" / "a.jsonl").write_text("mine")
        assert "generations in it is not" in rejected(*given, "hydra.run.dir=.")
        (tmp_path / "generations" / "a.jsonl").unlink()
        shutil.move(tmp_path / "rows.jsonl", tmp_path / "generations" / "rows.jsonl")
        given[2] = "dataset.path=generations/rows.jsonl"
        assert "dataset.path=generations/rows.jsonl" in rejected(*given, "hydra.run.dir=.")

    def test_an_evaluation_may_be_inside_the_run_it_is_about(self, given, lpsel, toy_model, tmp_path):
        run = tmp_path / "run"
        assert lpsel("train", *given, f"model.path={toy_model}", f"hydra.run.dir={run}").status is None
        asked = [
            "evaluate", f"model={run}", "dataset.path=rows.jsonl", "dataset.limit=2", "trainer=cpu", "tracker=none",
            "evaluator.max_new_tokens=2", f"hydra.run.dir={run}/evaluation",
        ]  # fmt: skip
        for _ in range(2):
            end = lpsel(*asked)
            assert end.status is None, end.err


def test_a_folder_for_outcomes_in_a_sweep_is_not_replaced_if_it_is_the_users(rejected, selected, tmp_path):
    sweep, inputs = tmp_path / "sweep", selected.parent.parent / "inputs"
    (sweep / ".jobs").mkdir(parents=True)
    (sweep / ".jobs" / "0.json").write_text("mine")
    given = [f"dataset.path={inputs}/rows.jsonl", f"scores={inputs}/scores.csv", "tracker=none", "cluster=none"]
    error = rejected("select", "-m", *given, "pct=25,50", f"hydra.sweep.dir={sweep}")
    assert f"hydra.sweep.dir={sweep}/.jobs: is not empty and was not written by lpsel sweep" in error


class TestCodeOfAModel:
    @pytest.fixture
    def their_run(self, toy_model, tmp_path):
        """A run folder of someone else, whose model brings code and whose result.json says to trust it."""
        run, ran = tmp_path / "theirs", tmp_path / "ran"
        shutil.copytree(toy_model, run / "model")
        config = json.loads((run / "model" / "config.json").read_text())
        auto = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
        (run / "model" / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "own"}))
        (run / "model" / "own.py").write_text(
            "from pathlib import Path\n"
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            f"Path({str(ran)!r}).touch()\n"
            "class Own(LlamaConfig):\n    model_type = 'own'\n"
            "class OwnModel(LlamaForCausalLM):\n    config_class = Own\n"
        )
        base = {"name": "own", "template": "alpaca", "max_length": 64, "trust_remote_code": True}
        result = {"command": "train", "model": str(run / "model"), "base_model": base, "rule": "full", "pct": 100}
        (run / "result.json").write_text(json.dumps(result))
        return run, ran

    @pytest.mark.parametrize("option", ["model={}", "baseline={}", "model=[{}]"])
    def test_it_runs_only_where_the_command_says_so(
        self, option, their_run, rejected, lpsel, toy_model, instructions, tmp_path
    ):
        run, ran = their_run
        instructions(rows=4)
        given = [
            "evaluate", option.format(run), "dataset.path=rows.jsonl", "trainer=cpu", "tracker=none",
            f"hydra.run.dir={tmp_path}/evaluated", "evaluator.max_new_tokens=2",
        ]  # fmt: skip
        if option.startswith("baseline"):
            given.append(f"model={toy_model}")
        error = rejected(*given)
        assert f"model={run}: " in error
        assert "Set trust_remote_code=true" in error
        assert not ran.exists()
        end = lpsel(*given, "trust_remote_code=true")
        assert end.status is None, end.err
        assert ran.exists(), "the trap works"

    def test_an_embedder_cannot_bring_code(self, rejected, toy_model, instructions, tmp_path):
        folder, ran = tmp_path / "embedder", tmp_path / "ran"
        shutil.copytree(toy_model, folder)
        (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]')
        (folder / "own.py").write_text(
            f"from pathlib import Path\nimport torch\nPath({str(ran)!r}).touch()\nclass Own(torch.nn.Module): pass\n"
        )
        instructions(rows=8)
        (tmp_path / "scores.csv").write_text("ppl_0,ppl_1\n" + "".join(f"10,{n + 1}\n" for n in range(8)))
        error = rejected(
            "select", "dataset.path=rows.jsonl", "scores=scores.csv", "cluster=kmeans", f"cluster.embedder={folder}",
            "tracker=none", f"hydra.run.dir={tmp_path}/evaluated",
        )  # fmt: skip
        assert f"cluster.embedder={folder}" in error
        assert not ran.exists()
