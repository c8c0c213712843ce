"""`lpsel publish`: a subset as a dataset folder with a card, and its upload to the Hub."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lpsel.commands.job import run
from lpsel.commands.publish import main, publish
from lpsel.errors import UserError
from lpsel.storage import sha256_of


@pytest.fixture
def selected(tmp_path):
    """Four of eight rows, one of which has no answer."""
    rows = [{"instruction": f"Q{n}", "input": "", "output": "" if n == 7 else "A"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["ppl_0,ppl_1", *(f"10,{n + 1}" for n in range(7)), ","]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    data = ["dataset=local", f"dataset.path={tmp_path}/rows.jsonl", f"scores={tmp_path}/scores.csv", "tracker=none"]
    run("select", [*data, "cluster=none", "pct=50"], tmp_path / "run")
    return tmp_path / "run"


def test_the_folder_loads_as_a_dataset_and_its_card_describes_it(selected, tmp_path, capsys):
    from datasets import load_dataset
    from huggingface_hub import DatasetCard

    main([str(selected), "--license", "cc-by-4.0"])
    folder = selected / "dataset"
    assert capsys.readouterr().out == f"Next: upload it with --to OWNER/NAME\n{folder}\n"
    rows = load_dataset(str(folder), split="train")
    assert rows["instruction"] == ["Q3", "Q4", "Q5", "Q6"]  # LP_app is .6, .5, .4, .3: the lowest
    card = DatasetCard.load(folder / "README.md")
    assert (card.data.license, card.data.size_categories) == ("cc-by-4.0", ["n<1K"])
    assert "# rows, 50% by lp_app\n\n4 of the 8 rows of rows" in card.text
    assert "- Excluded: empty answer (1)" in card.text
    assert "Scores: selected 0.3 to 0.6, mean 0.45; all 0.3 to 0.9, mean 0.6" in card.text
    assert (folder / "selection.parquet").read_bytes() == (selected / "selection.parquet").read_bytes()


def test_the_license_of_a_configured_dataset_is_used(selected, tmp_path):
    result = json.loads((selected / "result.json").read_text())
    result["dataset"]["license"] = "cc-by-sa-3.0"
    (selected / "result.json").write_text(json.dumps(result))
    assert "license: cc-by-sa-3.0\n" in (publish(selected, tmp_path / "out") / "README.md").read_text()


def test_errors_name_what_is_missing(selected, tmp_path):
    with pytest.raises(UserError, match=r"dataset rows: its license is unknown\. Set --license ID\."):
        publish(selected)
    with pytest.raises(UserError, match=r"nowhere: not a finished run of select or train \(result.json"):
        publish(tmp_path / "nowhere", license="mit")
    (selected / "subset.jsonl").unlink()
    with pytest.raises(UserError, match=r"subset.jsonl: no longer exists\. Select again\."):
        publish(selected, license="mit")
    assert not (selected / "dataset").exists()


@pytest.mark.parametrize("elsewhere", ["/etc/hostname", "../rows.jsonl", "result.json", "../subset.jsonl"])
@pytest.mark.parametrize("which", ["subset", "selection"])
def test_only_outputs_of_the_run_are_published(selected, tmp_path, elsewhere, which):
    """A run folder of someone else may name any file of this machine."""
    (tmp_path / "subset.jsonl").write_text("mine")
    path = selected / elsewhere
    result = json.loads((selected / "result.json").read_text())
    change = {which: str(path), "sha256": result["sha256"] | {path.name: sha256_of(path)}}
    (selected / "result.json").write_text(json.dumps(result | change))
    with pytest.raises(UserError) as caught:
        publish(selected, tmp_path / "out", license="mit")
    assert caught.value.name == str(selected / path.name)
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_hash_is_not_published(selected):
    result = json.loads((selected / "result.json").read_text())
    del result["sha256"]["subset.jsonl"]
    (selected / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"subset\.jsonl: is not an output of the run with its hash in result\.json"):
        publish(selected, license="mit")


def test_a_run_can_be_moved_before_it_is_published(selected, tmp_path):
    moved = selected.rename(tmp_path / "moved")
    assert (publish(moved, license="mit") / "data" / "train.jsonl").is_file()


def test_the_card_does_not_name_a_local_folder_that_was_deleted(selected, tmp_path):
    result = json.loads((selected / "result.json").read_text())
    result["dataset"]["path"] = f"{tmp_path}/deleted"
    (selected / "result.json").write_text(json.dumps(result))
    assert "deleted" not in (publish(selected, license="mit") / "README.md").read_text()


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's API that an upload of small files uses; records requests."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        if self.headers["Authorization"] != "Bearer hf_right":
            return self.respond(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            return self.respond(200, {"url": f"http://{self.headers['Host']}/datasets/ann/half"})
        if self.path == "/api/validate-yaml":
            return self.respond(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            return self.respond(200, {"files": [{**f, "shouldIgnore": False} for f in files]})
        return self.respond(
            200,
            {
                "commitUrl": f"http://{self.headers['Host']}/datasets/ann/half/commit/1",
                "commitOid": "1" * 40,
                "success": True,
            },
        )

    def do_GET(self):
        self.respond(200, {"id": "ann/half", "sha": "0" * 40, "siblings": []})

    def respond(self, status, value):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def uploaded(hub, selected, token):
    """In a new process: the Hub's client reads the address and token at import."""
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": token, "PATH": "/usr/bin:/bin"}
    code = "from lpsel.cli import console; console()"
    command = [sys.executable, "-c", code, "publish", str(selected), "--license", "mit", "--to", "ann/half"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_upload_sends_the_folder_to_a_private_dataset(hub, selected):
    done = uploaded(hub, selected, "hf_right")
    assert done.stdout.splitlines()[0] == f"http://127.0.0.1:{hub.server_port}/datasets/ann/half", done.stderr
    assert done.stdout.splitlines()[1:] == [f"Next: use it as dataset={selected}/dataset/data", f"{selected}/dataset"]
    created = json.loads(next(body for path, _, body in hub.requests if path == "/api/repos/create"))
    assert (created["type"], created["visibility"]) == ("dataset", "private")
    commit = next(body for path, _, body in hub.requests if "/commit/" in path)
    files = [json.loads(line)["value"].get("path") for line in commit.splitlines()]
    assert set(files[1:]) == {"README.md", "data/train.jsonl", "selection.parquet"}


def test_a_wrong_token_is_a_one_line_error_without_the_token(hub, selected):
    done = uploaded(hub, selected, "hf_wrong")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("lpsel publish: --to ann/half: the Hub responded: ")
    assert "hf_wrong" not in done.stderr + done.stdout
