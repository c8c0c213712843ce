"""Compare the CPU time of reading, hashing and tokenizing rows with another commit in the same rounds.

    git worktree add ../before COMMIT
    python benchmarks/reading.py --old ../before

Each side is a process that imports lpsel from its own checkout and takes its turn in every round; the first round warms
up. Both must give the same content ids and the same number of tokens. Above 1, this checkout is faster.
"""

# Only main imports from this checkout: the process of the other one must not.
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = ("rows.jsonl", "chats.jsonl", "rows.parquet", "rows.csv")
STEPS = ("read", "hash", "tokenize")


def main(argv: list[str] | None = None) -> Path:
    from harness import arguments, in_words, ratios, show, write
    from material import ALPACA

    parser = arguments(__doc__)
    parser.set_defaults(rounds=7)
    parser.add_argument("--old", type=Path, required=True, help="a checkout of the other commit")
    parser.add_argument("--data", type=Path, default=ALPACA, help="Alpaca rows, else the embedded ones")
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        name = write_files(Path(folder), options.data, 200 if options.tiny else options.rows)
        sides = {"old": Side(options.old.resolve(), folder), "new": Side(ROOT, folder)}
        measured = {task: measure(sides, task, options.rounds) for task in product(FILES, STEPS)}
        for side in sides.values():
            side.end()
    comparisons = [
        {"file": file, "step": step, "seconds": seconds, "ratio": ratios(seconds["old"], seconds["new"])}
        for (file, step), seconds in measured.items()
    ]
    table = [
        [f"{c['step']} {c['file']}", *(f"{min(c['seconds'][side]):.3f}" for side in sides), in_words(c["ratio"])]
        for c in comparisons
    ]
    show(f"{name}: fastest CPU seconds", ["", "old", "new", "old / new, median"], table)
    return write(options.out, "reading", options, "cpu", {"data": name, "comparisons": comparisons})


def write_files(folder: Path, data: Path, rows: int) -> str:
    """Write rows in every file format, a conversation per two rows, and a tokenizer; return the name of the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from material import byte_tokenizer, sample

    from lpsel.toy.model import CHAT_TEMPLATE

    path, name = sample(data if data.exists() else None, rows, folder)
    path.rename(folder / "rows.jsonl")
    lines = (folder / "rows.jsonl").read_text().splitlines()
    table = [json.loads(line) for line in lines]
    pq.write_table(pa.Table.from_pylist(table), folder / "rows.parquet")
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    turns = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        for row in table
    ]
    chats = ({"messages": [*first, *second]} for first, second in zip(turns[::2], turns[1::2], strict=False))
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    tokenizer = byte_tokenizer(lines[:2_000], 4096)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")
    return f"{len(table):,} rows of {name}"


class Side:
    """A process that imports lpsel from a checkout."""

    def __init__(self, checkout: Path, folder: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, "--serve", folder]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, cwd=folder, stdin=pipe, stdout=pipe, text=True)
        if (imported := Path(self._answer())) != checkout:
            raise SystemExit(f"lpsel comes from {imported}, not from {checkout}")

    def time(self, task: tuple[str, str]) -> tuple[float, Any]:
        """Run a step on a file; return its CPU seconds and result."""
        assert self._process.stdin is not None
        print(json.dumps(task), file=self._process.stdin, flush=True)
        seconds, result = self._answer()
        return seconds, result

    def end(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit("a side ended; its error is above")
        return json.loads(line)


def measure(sides: dict[str, Side], task: tuple[str, str], rounds: int) -> dict[str, list[float]]:
    """Measure the CPU seconds of every round except the first, by side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        results = []
        for name in list(sides)[:: -1 if number % 2 else 1]:
            took, result = sides[name].time(task)
            seconds[name].append(took)
            results.append(result)
        if results[0] != results[1]:
            raise SystemExit(f"{task}: the two sides differ: {results}; nothing compared")
    return {name: taken[1:] for name, taken in seconds.items()}


def serve(folder: Path) -> None:
    """Run steps for the parent process until it ends."""
    from transformers import AutoTokenizer

    import lpsel

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    print(json.dumps(str(Path(lpsel.__file__).resolve().parents[1])), flush=True)
    for line in sys.stdin:
        file, step = json.loads(line)
        print(json.dumps(timed(folder / file, step, tokenizer)), flush=True)


def timed(file: Path, step: str, tokenizer: Any) -> tuple[float, Any]:
    """Run a step; return its CPU seconds, and the hash of the ids or the number of tokens or rows."""
    try:
        from lpsel.data.dataset import DatasetSpec, Source
    except ImportError:  # of c1e1479
        from lpsel.data.source import DatasetSpec, Source
    from lpsel.data.tokens import tokenize

    source = Source(DatasetSpec("rows", str(file)))
    if step == "tokenize":
        source.ids  # noqa: B018  # hashes, which is not timed here
        with tempfile.TemporaryDirectory() as cache:
            started = time.process_time()
            tokens = tokenize(source, tokenizer, "chat" if file.stem == "chats" else "alpaca", 512, Path(cache))
            return time.process_time() - started, int(tokens.lengths.sum())
    started = time.process_time()
    result = sum(1 for _ in source) if step == "read" else source.ids
    seconds = time.process_time() - started
    if step == "hash":
        result = hashlib.sha256(" ".join(result.to_pylist()).encode()).hexdigest()
    return seconds, result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        main()
