"""The invalid files that the command lines of catalog.py name, in one folder."""

import gzip
import hashlib
import json
import lzma
import os
import random
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MIB = 1 << 20
ROW = {"instruction": "Add 2 and 2.", "input": "", "output": "4"}


def rows(n=24):
    return [{"instruction": f"Count to {i % 7}.", "input": "", "output": f"{i % 7} #{i}"} for i in range(n)]


def lines(some):
    return "".join(json.dumps(row) + "\n" for row in some).encode()


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


def make(folder: Path, model: Path) -> None:
    """Write all of them. `model` is the folder of a small model, which is copied and damaged."""
    for name, content in {**_data(), **_scores(), **_prompts(), **_judgements(), **_votes()}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    _tables(folder)
    _models(folder, model)
    _runs(folder)
    _locked(folder, model)


def _data():
    good = lines(rows())
    noise = random.Random(0).randbytes(4096)
    long = b'{"instruction": "' + b"a" * (65 * MIB) + b'", "output": "b"}\n'
    blank = b" " * MIB + b"\n"
    return {
        "good.jsonl": good,
        "one.jsonl": lines(rows(1)),
        "empty.jsonl": b"",
        "blank.jsonl": b"\n \n\n",
        "half.jsonl": good[:-20],
        "questions.jsonl": lines([{"instruction": "Say hello."}]),
        "half-in-the-middle.jsonl": good[:60] + b"\n" + good,
        "words.jsonl": b"once upon a time\n",
        "list.jsonl": b"[1, 2]\n",
        "number.jsonl": b"17\n",
        "null.jsonl": b"null\n",
        "utf16.jsonl": good.decode().encode("utf-16"),
        "utf32.jsonl": good.decode().encode("utf-32"),
        "latin1.jsonl": '{"instruction": "Übung", "output": "größer"}\n'.encode("latin-1"),
        "nul.jsonl": b"\0" * 512,
        "binary.jsonl": noise,
        "binary.json": noise,
        "binary.csv": noise,
        "binary.parquet": noise,
        "binary.xyz": noise,
        "deep.jsonl": b'{"instruction": ' + b"[" * 200_000 + b"]" * 200_000 + b', "output": "b"}\n',
        "deep.json": b"[" * 200_000,
        "digits.jsonl": b'{"instruction": ' + b"9" * 5_000 + b', "output": "b"}\n',
        "digits.json": b'[{"instruction": ' + b"9" * 5_000 + b', "output": "b"}]',
        "surrogate.jsonl": b'{"instruction": "a\\ud800", "output": "b"}\n',
        "unknown-columns.jsonl": lines([{"frage": "a", "antwort": "b"}]),
        "only-input.jsonl": lines([{"instruction": "a", "input": "b"}]),
        "one-row-without.jsonl": lines([ROW, ROW, {"instruction": "a"}]),
        "list-in-text.jsonl": lines([{"instruction": ["a"], "output": "b"}]),
        "object-in-text.jsonl": lines([{"instruction": "a", "output": {"text": "b"}}]),
        "roles.jsonl": lines([{"messages": [{"role": "wizard", "content": "a"}]}]),
        "no-turns.jsonl": lines([{"messages": []}]),
        "text-for-turns.jsonl": lines([{"messages": "Hello"}]),
        "turn-without-content.jsonl": lines([{"messages": [{"role": "user"}]}]),
        "sharegpt.jsonl": lines([{"conversations": [{"from": "robot", "value": "a"}]}]),
        "no-answers.jsonl": lines([{"instruction": "a", "output": ""}] * 24),
        "object.json": {"rows": [ROW]},
        "lines.json": good,
        "cut.json": b'[{"instruction": "a", "output": "b"}, {"instr',
        "trailing.json": b'[{"instruction": "a", "output": "b"}] and more',
        "empty.json": b"",
        "empty-list.json": b"[]",
        "text.json": b'"once upon a time"',
        "mixed.json": b'[{"instruction": "a", "output": "b"}, 3]',
        "header.csv": b"instruction,output\n",
        "empty.csv": b"",
        "ragged.csv": b"instruction,output\na,b\nc\n",
        "wide.csv": b"instruction,output\na,b,c\n",
        "quote.csv": b'instruction,output\n"a,b\n',
        "after-quote.csv": b'instruction,output\n"a"b,c\n',
        "twice.csv": b"instruction,output,output\na,b,c\n",
        "latin1.csv": "instruction,output\nÜbung,größer\n".encode("latin-1"),
        "utf16.csv": "instruction,output\na,b\n".encode("utf-16"),
        "nul.csv": b"instruction,output\na\0,b\n",
        "gigantic.csv": b'instruction,output\n"' + (b"a" * MIB + b"\n") * 65 + b'",b\n',
        "plain.jsonl.gz": good,
        "plain.jsonl.xz": good,
        "plain.jsonl.zst": good,
        "cut.jsonl.gz": gzip.compress(good)[:-30],
        "cut.jsonl.xz": lzma.compress(good)[:-30],
        "cut.jsonl.zst": zstd(good)[:-9],
        "broken.jsonl.gz": _flipped(gzip.compress(good)),
        "broken.jsonl.xz": _flipped(lzma.compress(good)),
        "broken.jsonl.zst": _flipped(zstd(good)),
        "gzip-in-gzip.jsonl.gz": gzip.compress(gzip.compress(good)),
        "gigantic.jsonl.gz": gzip.compress(long, 1),
        "gigantic.json.xz": lzma.compress(b"[" + long + b"]", preset=0),
        "bomb.jsonl.gz": gzip.compress(blank * 64, 1) * 5,
        "bomb.jsonl.xz": lzma.compress(blank * 64, preset=0) * 5,
        "bomb.jsonl.zst": zstd(blank * 64) * 5,
        "bomb.json.zst": zstd(b"[" + blank * 64) + zstd(blank * 64) * 4,
        "good.parquet.gz": gzip.compress(good),
        "a.tar.gz": gzip.compress(b"x" * 100),
        "cut.parquet": b"PAR1" + noise + b"PAR1",
        "rewards.jsonl": lines([{**row, "reward": "good"} for row in rows()]),
        "topics.jsonl": lines([{**row, "topic": ["a"]} for row in rows()]),
        "hidden/good.jsonl": good,
    }


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 8]) + content[middle + 8 :]


def _scores():
    def table(header, line, n=24):
        return "\n".join([header, *(line.format(i=i) for i in range(n))]).encode() + b"\n"

    return {
        "scores/good.csv": table("nll_0,nll_1,nll_2,nll_3", "2.0,1.{i},1.0,0.5"),
        "scores/short.csv": table("nll_0,nll_1", "2.0,1.{i}", 20),
        "scores/long.csv": table("nll_0,nll_1", "2.0,1.{i}", 30),
        "scores/no-columns.csv": table("loss,gain", "2.0,1.{i}"),
        "scores/no-first.csv": table("nll_1,nll_2", "2.0,1.{i}"),
        "scores/gap.csv": table("nll_0,nll_2", "2.0,1.{i}"),
        "scores/only-first.csv": table("nll_0", "2.{i}"),
        "scores/words.csv": table("nll_0,nll_1", "high,low"),
        "scores/zero.csv": table("ppl_0,ppl_1", "0,1.{i}"),
        "scores/negative.csv": table("ppl_0,ppl_1", "-2,1.{i}"),
        "scores/twice.csv": table("index,nll_0,nll_1", "0,2.0,1.{i}"),
        "scores/far.csv": table("index,nll_0,nll_1", "1{i},2.0,1.{i}"),
        "scores/negative-index.csv": table("index,nll_0,nll_1", "-{i},2.0,1.{i}"),
        "scores/fraction-index.csv": table("index,nll_0,nll_1", "{i}.5,2.0,1.{i}"),
        "scores/same-column.csv": table("nll_0,nll_0,nll_1", "1.0,2.0,1.{i}"),
        "scores/half-clusters.csv": b"nll_0,nll_1,cluster\n2.0,1.0,1\n2.0,1.0,\n",
        "scores/no-rows.csv": b"nll_0,nll_1\n",
        "scores/empty.csv": b"",
        "scores/empty.parquet": b"",
        "scores/empty.npz": b"",
        "scores/text.txt": b"nll_0\n1\n",
        "scores/binary.npz": random.Random(1).randbytes(2048),
        "scores/binary.csv": random.Random(2).randbytes(2048),
        "scores/folder/manifest.json": {},
    }


def _prompts():
    return {
        "prompts/good.jsonl": lines([{"instruction": "Say hello."}, {"instruction": "Count to 3."}]),
        "prompts/ids.jsonl": lines([{"id": "a", "instruction": "x"}, {"id": "a", "instruction": "y"}]),
        "prompts/empty.jsonl": b"",
        "prompts/silent.jsonl": lines([{"instruction": "  "}]),
        "prompts/columns.jsonl": lines([{"question": "x"}]),
        "prompts/object.jsonl": lines([{"instruction": {"text": "a"}}]),
        "prompts/half.jsonl": b'{"instruction": "x"',
        "prompts/long.jsonl": lines([{"instruction": "word " * 2_000}]),
        "prompts/text.txt": b"Say hello.",
        "judge-without-places.txt": b"Which is better?",
        "judge-latin1.txt": "Welche ist größer? {nonce} {prompt} {first} {second}".encode("latin-1"),
    }


def _judgements():
    def said(**more):
        return {"instruction": "a", "generator_1": "x", "generator_2": "y", "preference": 1, **more}

    return {
        "judgements/empty.json": [],
        "judgements/no-preference.json": [{"instruction": "a"}],
        "judgements/no-prompt.json": [said(), {"preference": 1}],
        "judgements/words.json": [said(preference="maybe")],
        "judgements/far.json": [said(preference=7)],
        "judgements/twice.json": [said(), said(preference=2)],
        "judgements/baselines.json": [said(), said(instruction="b", generator_1="z")],
        "judgements/orders.json": [said(order=order) for order in "abc"],
        "judgements/chars.json": [said(model_chars="many")],
        "judgements/text.txt": b"1 2 1",
        "judgements/half.json": b'[{"preference": 1',
        "judgements/nothing.json": [said(preference=None)],
    }


def _votes():
    def votes(page="p", **more):
        return {"page": page, "annotator": "Ada", "votes": [], **more}

    def vote(pair=0, **more):
        return {"pair": pair, "vote": "a", "at": "2026-01-01T00:00:00Z", **more}

    pair = {"id": "a", "a": "model", "prompt_set": "s", "category": None, "baseline_chars": 1, "model_chars": 2}
    return {
        "votes/key.json": {"page": "p", "baseline": "b", "model": "m", "pairs": [pair], "equal": []},
        "votes/good.json": votes(votes=[vote()]),
        "votes/other-page.json": votes(page="q", votes=[vote()]),
        "votes/none.json": votes(),
        "votes/skipped.json": votes(votes=[vote(vote="skip")]),
        "votes/far.json": votes(votes=[vote(pair=7)]),
        "votes/choice.json": votes(votes=[vote(vote="both")]),
        "votes/time.json": votes(votes=[vote(at="yesterday")]),
        "votes/nameless.json": votes(annotator="  "),
        "votes/list.json": [1],
        "votes/half.json": b'{"page": "p", "annot',
        "votes/deep.json": b"[" * 200_000,
        "votes/binary.json": random.Random(3).randbytes(512),
        "votes/bad-key.json": {"page": "p"},
        "votes/deep-key.json": b"[" * 200_000,
        "votes/odd-key.json": {"page": "p", "baseline": "b", "model": "m", "pairs": 3, "equal": []},
    }


def _tables(folder):
    whole = pa.table({"instruction": ["a", "b"], "output": ["c", "d"]})
    pq.write_table(whole, folder / "good.parquet")
    content = (folder / "good.parquet").read_bytes()
    (folder / "half.parquet").write_bytes(content[: len(content) // 2])
    (folder / "broken.parquet").write_bytes(_flipped(content))
    pq.write_table(pa.table({"instruction": ["a"], "output": [b"\xff\xfe"]}), folder / "bytes.parquet")
    pq.write_table(pa.table({"instruction": pa.array([], pa.string()), "output": []}), folder / "empty.parquet")
    same = pa.table({"instruction": ["a"], "output": ["b"]}).rename_columns(["output", "output"])
    pq.write_table(same, folder / "twice.parquet")
    # One page that is 400 MiB of the same letter: 20 KiB as zstd.
    bomb = pa.table({"instruction": ["a"], "output": pa.array(["b" * (400 * MIB)], pa.large_string())})
    pq.write_table(bomb, folder / "bomb.parquet", compression="zstd", use_dictionary=False, write_statistics=False)
    # Each row is the same text of 1 MiB, which a page of the file holds once: 20,000 rows in some KiB.
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["b" * MIB]))
    bomb = pa.table({"instruction": ["a"] * 20_000, "output": repeated})
    pq.write_table(bomb, folder / "repeated.parquet", compression="zstd", write_statistics=False)
    scores = folder / "scores"
    pq.write_table(pa.table({"nll_0": ["high"], "nll_1": ["low"]}), scores / "words.parquet")
    pq.write_table(pa.table({"nll_0": [1.0], "nll_1": [0.5], "id": [None]}), scores / "no-id.parquet")
    twice = pa.table([[1.0], [2.0], [0.5]], names=["nll_0", "nll_0", "nll_1"])
    pq.write_table(twice, scores / "same-column.parquet")
    ids = pa.table({"nll_0": [1.0] * 24, "nll_1": [0.5] * 24, "id": ["0" * 32] * 24})
    pq.write_table(ids, scores / "other-ids.parquet")
    np.savez(scores / "two.npz", a=np.ones((2, 24)), b=np.ones((2, 24)))
    np.savez(scores / "flat.npz", ppl=np.ones(24))
    np.savez(scores / "text.npz", ppl=np.array([["a"] * 24] * 2))
    np.savez(scores / "clusters.npz", ppl=np.full((2, 24), 2.0), cluster=np.zeros(7))
    np.savez(scores / "pickle.npz", ppl=np.array([{"a": 1}], dtype=object))
    np.save(scores / "array.npy", np.ones((2, 24)))
    shutil.copy(scores / "array.npy", scores / "array.npz")
    content = (scores / "two.npz").read_bytes()
    (scores / "half.npz").write_bytes(content[: len(content) // 2])
    with zipfile.ZipFile(scores / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("ppl.npy", _npy_header((2, 20 * MIB)) + bytes(2 * 20 * MIB * 8))
    with zipfile.ZipFile(scores / "lies.npz", "w") as archive:  # a few bytes that claim to be 8 petabytes
        archive.writestr("ppl.npy", _npy_header((2, 1 << 49)) + b"\0" * 64)


def _npy_header(shape):
    text = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _models(folder, model):
    def copied(name, *left_out):
        made = folder / "models" / name
        shutil.copytree(model, made, ignore=shutil.ignore_patterns(*left_out))
        return made

    def changed(made, **values):
        config = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps(config | values))

    copied("good")
    copied("no-weights", "*.safetensors")
    copied("no-config", "config.json")
    copied("no-tokenizer", "tokenizer*", "special_tokens_map.json")
    weights = copied("half-weights") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (copied("no-header") / "model.safetensors").write_bytes(b"\xff" * 64)
    (copied("half-config") / "config.json").write_text('{"model_type": "lla')
    (copied("list-config") / "config.json").write_text("[]")
    changed(copied("unknown-type"), model_type="perceiver-of-the-third-kind", architectures=["Third"])
    changed(copied("not-causal"), model_type="vit", architectures=["ViTModel"])
    changed(copied("other-shape"), hidden_size=64)
    changed(copied("few-tokens"), vocab_size=200)
    (copied("half-tokenizer") / "tokenizer.json").write_text('{"version": ')
    code = copied("own-code")
    changed(code, auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}, model_type="own")
    (code / "own.py").write_text("raise SystemExit('the code of a model ran')")
    pickled = copied("pickled", "*.safetensors")
    from safetensors.torch import load_file
    from torch import save

    save(load_file(model / "model.safetensors"), pickled / "pytorch_model.bin")
    index = copied("missing-shard", "*.safetensors") / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}))
    (index.parent / "model-00002-of-00002.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (folder / "models/empty").mkdir()


def _runs(folder):
    def result(name, value):
        made = folder / "runs" / name
        made.mkdir(parents=True)
        (made / "result.json").write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())

    select = {"command": "select", "rule": "lp_app", "dataset": {"name": "x", "path": None, "license": "mit"}}
    result("half", b'{"command": "tra')
    result("deep", b"[" * 200_000)
    result("list", [1])
    result("foreign", {"hello": 1})
    result("no-scores", select | {"scores": None})
    result("lost-scores", select | {"scores": str(folder / "nowhere.parquet")})

    def selected(name, *lost, **changed):
        outputs = {"subset": "subset.jsonl", "selection": "selection.parquet"}
        sources = {"subset.jsonl": folder / "good.jsonl", "selection.parquet": folder / "good.parquet"}
        hashes = {file: hashlib.sha256(source.read_bytes()).hexdigest() for file, source in sources.items()}
        result(name, select | outputs | {"sha256": hashes} | changed)
        for file in sources.keys() - set(lost):
            shutil.copy(sources[file], folder / "runs" / name / file)

    selected("lost-subset", "subset.jsonl")
    selected("changed-subset")
    with (folder / "runs/changed-subset/subset.jsonl").open("a") as subset:
        subset.write('{"instruction": "a", "output": "b"}\n')
    selected("no-hashes", sha256={})
    selected("other-subset", subset=str(folder / "good.jsonl"))
    selected("no-license", dataset={"name": "mine", "path": "mine.jsonl", "license": None})
    selected("no-fields")
    (folder / "runs/empty").mkdir()
    (folder / "report-in-the-way").mkdir()
    (folder / "report-in-the-way/thesis.txt").write_text("mine")
    (folder / "a-file").write_text("x")


def _locked(folder, model):
    """What may not be read, what may not be written to, and what is no file at all."""
    for copied in ("good.jsonl", "good.csv", "good.parquet", "good.npz", "vote.json", "prompt.txt"):
        source = {"good.csv": "scores/good.csv", "good.npz": "scores/two.npz", "vote.json": "votes/good.json",
                  "prompt.txt": "judge-without-places.txt"}.get(copied, copied)  # fmt: skip
        shutil.copy(folder / source, folder / f"locked-{copied}")
        (folder / f"locked-{copied}").chmod(0)
    shutil.copytree(model, folder / "models/locked-weights")
    shutil.copytree(model, folder / "models/locked-config")
    (folder / "models/locked-weights/model.safetensors").chmod(0)
    (folder / "models/locked-config/config.json").chmod(0)
    for name in ("locked", "models/locked", "runs/locked", "scores/locked"):
        (folder / name).mkdir()
        for inside in ("good.jsonl", "scores.parquet", "config.json", "result.json", "prompt.txt"):
            (folder / name / inside).write_text("{}")
        (folder / name).chmod(0)
    (folder / "read-only").mkdir()
    (folder / "read-only").chmod(0o555)
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "dangling.jsonl").symlink_to("nothing.jsonl")
    (folder / "device.jsonl").symlink_to("/dev/zero")
    (folder / "folder.jsonl").mkdir()
    os.mkfifo(folder / "pipe.jsonl")
