"""Whatever bytes a file has, it is read or refused in our words; whatever a judge writes, it is a verdict or none.

FUZZ_EXAMPLES=20000 looks longer than CI does. What was found is kept: as an @example, or as a file in fuzz_seeds.
"""

import gzip
import io
import json
import lzma
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.formats import reader_of
from lpsel.errors import UserError
from lpsel.judging.verdicts import letter, pairwise, score
from lpsel.scoring.npz import names_in_npz, read_array
from lpsel.scoring.read import read_scores

SEEDS = Path(__file__).parent / "fuzz_seeds"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ROWS = [{"instruction": "Say ü.", "input": "", "output": "ü\n"}, {"instruction": "b", "input": None, "output": "4"}]
CHATS = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]


def in_memory(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def parquet(columns):
    return in_memory(lambda file: pq.write_table(pa.table(columns), file))


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
DATA = {
    ".jsonl": [LINES, json.dumps(CHATS[0]).encode()],
    ".json": [json.dumps(ROWS, indent=1).encode(), json.dumps({"version": 1.5e3, "data": CHATS}).encode()],
    ".csv": [b'instruction,output\n"a ""b""\n, c",d\ne,f\n'],
    ".jsonl.gz": [gzip.compress(LINES, mtime=0)],
    ".jsonl.xz": [lzma.compress(LINES)],
    ".jsonl.zst": [pa.compress(LINES, codec="zstd", asbytes=True)],
    ".parquet": [
        parquet({name: [row[name] for row in ROWS] for name in ROWS[0]}),
        parquet({"messages": [CHATS[0]["messages"]] * 3}),
    ],
}
SCORES = {
    ".csv": [b"index,id,nll_0,nll_1,cluster\n1,a,2.0,1.5,x\n0,b,,,y\n"],
    ".parquet": [parquet({"ppl_0": [2.0, 1.5], "ppl_1": [1.5, None], "truncated": [True, False]})],
    ".npz": [
        in_memory(lambda file: np.savez(file, ppl=np.full((2, 3), 2.0), cluster=np.arange(3))),
        in_memory(lambda file: np.savez_compressed(file, ppl=np.full((2, 3), 2.0))),
    ],
}


def applied(content, changes):
    for kind, where, new in changes:
        at = int(where * len(content))
        match kind:
            case "replace":
                content = content[:at] + new + content[at + len(new) :]
            case "insert":
                content = content[:at] + new + content[at:]
            case "remove":
                content = content[:at] + content[at + len(new) :]
            case "cut":
                content = content[:at]
            case "repeat":
                content = content[:at] + content[at // 2 :]
    return content


def damaged(seeds):
    """One of some files with a few changes, or bytes of no kind."""
    change = st.tuples(
        st.sampled_from(["replace", "insert", "remove", "cut", "repeat"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=4)
        | st.sampled_from([b'"', b"{", b"[", b"\0", b",", b"\xff", b"1e999", b"null"]),
    )
    return st.builds(applied, st.sampled_from(seeds), st.lists(change, min_size=1, max_size=4)) | st.binary(max_size=64)


def read_or_refused(path, read):
    """What `read` gives; None where it refuses the file, in one line with its name."""
    try:
        return read()
    except UserError as error:
        message = str(error)
    assert path.name in message
    assert len(message) < 1_000
    assert message.splitlines() == [message]
    return None


def check_rows(path):
    rows = read_or_refused(path, lambda: list(Source(DatasetSpec("rows", path=str(path)))))
    assert rows is None or all(re.fullmatch("[0-9a-f]{32}", row.example.content_id()) for row in rows)


def check_scores(path):
    table = read_or_refused(path, lambda: read_scores(path))
    assert table is None or len(table) == table.nll.shape[1] > 0


def check_arrays(path):
    for name in read_or_refused(path, lambda: names_in_npz(path)) or []:
        read_or_refused(path, lambda name=name: read_array(path, name))


@pytest.mark.parametrize("ending", DATA)
def test_a_data_file_is_read_or_rejected(ending, tmp_path):
    path = tmp_path / f"rows{ending}"
    assert reader_of(path.name) is not None

    @fuzz
    @given(damaged(DATA[ending]))
    def check(content):
        path.write_bytes(content)
        check_rows(path)

    check()


@pytest.mark.parametrize("ending", SCORES)
def test_a_scores_file_is_read_or_rejected(ending, tmp_path):
    path = tmp_path / f"scores{ending}"

    @fuzz
    @given(damaged(SCORES[ending]))
    def check(content):
        path.write_bytes(content)
        check_scores(path)
        if ending == ".npz":
            check_arrays(path)

    check()


@pytest.mark.parametrize("seed", sorted(SEEDS.glob("*")), ids=lambda seed: seed.name)
def test_files_that_once_were_not_rejected(seed):
    if seed.name.startswith("rows"):
        check_rows(seed)
    else:
        check_scores(seed)


PIECES = [
    "[[",
    "]]",
    "A",
    "B",
    "C",
    "[[A]]",
    "[[B]]",
    "[[A: 7]]",
    "[[B: 7.5]]",
    "[[A:",
    "10",
    "\n",
    " ",
    "**",
    ".",
    "</think>",
]


@fuzz
@given(st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("[[A]]\n[[B]]")
@example("[[A]]" + " " * 200_000 + "x")
@example("[[A: 1]]" * 20_000)
@example(" " * 200_000 + "A")
@example("[[A: 1]] " + "*_` " * 50_000 + "[[B: 2]]")
def test_any_reply_is_a_verdict_or_none(reply):
    for parse in (pairwise, letter, score):
        assert parse(reply) in (None, 1, 1.5, 2)
    said = reply.rpartition("</think>")[2]
    mark = r"\[\[[ABC]\]\]"
    before_on_its_line = said[: said.rfind("[[")].rpartition("\n")[2]
    one_verdict = len(set(re.findall(mark, said))) == 1 or not re.search(mark, before_on_its_line)
    assert pairwise(reply) is None or one_verdict
    assert score(reply) is None or said.rstrip(" \n\t\r.*_`").endswith("]]")


@fuzz
@given(st.floats(1, 10), st.floats(1, 10))
@example(7.0, 7.04)
def test_scores_are_compared_as_numbers(first, second):
    first, second = round(first, 1), round(second, 1)
    wanted = 1.5 if first == second else 1 if first > second else 2
    assert score(f"Well.\n[[A: {first}]] [[B: {second}]]") == wanted
