"""Read scores from other tools: Bergson's score folders, DataFlex's selections, samples logged by lm-eval.

These files hold numbers to rank by (`selection=score_column`), not recorded losses. The formats follow the tools'
public source code.

N rows, Q queries, T tokens
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.data.text_files import lines
from lpsel.errors import UserError, printable_line
from lpsel.storage import read_json

INFO, SCORES = "info.json", "scores.bin"  # files in a folder written by Bergson
BFLOAT16 = np.dtype("<u2")  # the upper half of a float32; NumPy has no bfloat16
TYPES = {"bfloat16": BFLOAT16} | {name: np.dtype(name) for name in ("bool", "float16", "float32", "float64")}
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, OSError)


def read_external(path: Path, rows: Callable[[], int]) -> pa.Table | None:
    """Read the numeric columns of a file or folder of one of these tools, by row; None for anything else.

    - Bergson: `score` for a single query, otherwise `score_0`, `score_1`, ... and their mean, `score`. Token scores are
      summed over each document, since influence is additive. Unwritten cells, and documents with an unwritten token,
      are null.
    - DataFlex: the metrics in `step_N.json`, such as `loss`. Rows that were not selected are null.
    - lm-eval: the metrics in `samples_TASK_TIME.jsonl`; a (sum, weight) pair becomes their quotient. With several
      filters, columns are named `METRIC,FILTER`. Each document is a row; documents that were not evaluated are null.

    Args:
        rows: returns the number of rows in the dataset; called for files that contain only some of them.

    Raises:
        UserError: the file has unexpected contents.
    """
    reader = _reader(path)
    if reader is None:
        return None
    tool, read = reader
    try:
        columns = read(path, rows)
        return pa.table({name: pa.array(values_N, from_pandas=True) for name, values_N in columns.items()})
    except UNREADABLE as error:
        problem = f"is not in the format of {tool} ({printable_line(error)})"
        hint = "use a complete file, or write your own scores as .parquet or .csv"
        raise UserError("scores", path, problem, hint) from error


def is_external(path: Path) -> bool:
    """Whether a path looks like the output of one of these tools."""
    return _reader(path) is not None


def _reader(path: Path) -> tuple[str, Any] | None:
    """Return the name of the tool and the function that reads its output."""
    if path.is_dir():
        return ("Bergson", _bergson) if (path / INFO).is_file() and (path / SCORES).is_file() else None
    readers = {".json": ("DataFlex", _dataflex), ".jsonl": ("lm-eval", _lm_eval)}
    return readers.get(path.suffix) if path.is_file() else None


def _bergson(folder: Path, rows: Callable[[], int]) -> dict[str, NDArray[np.float64]]:
    """Read rows of (score_0, written_0, score_1, ...) in the layout given by info.json.

    Each row is a document, or a token if `attribute_tokens` is set; offsets.npy then has where each document starts,
    and the total.
    """
    info = read_json(folder / INFO)
    layout = info["dtype"]
    fields: Any = {**layout, "formats": [TYPES[name] for name in layout["formats"]]}
    stored = np.memmap(folder / SCORES, dtype=np.dtype(fields), mode="r", shape=(info["num_rows"],))
    score_QN = [
        np.where(stored[f"written_{q}"], _floats(stored[f"score_{q}"]), np.nan) for q in range(info["num_scores"])
    ]
    if info.get("attribute_tokens"):
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        n = len(offsets) - 1
        document_T = np.repeat(np.arange(n), np.diff(offsets))
        score_QN = [_floats(np.bincount(document_T, score_T, n)) for score_T in score_QN]
    columns = {f"score_{q}": score_N for q, score_N in enumerate(score_QN)} if len(score_QN) > 1 else {}
    return columns | {"score": np.mean(score_QN, axis=0)}


def _floats(values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype == BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def _dataflex(file: Path, rows: Callable[[], int]) -> dict[str, NDArray[np.float64]]:
    """Read {"indices": selected rows, "metric": {name: a value for each}}, or metrics with a value for every row."""
    step = read_json(file)
    index = np.array(step["indices"], np.int64)
    metrics = {name: np.array(values, np.float64) for name, values in step["metric"].items()}
    if not metrics:
        raise ValueError("it has no metric")
    for name, values in metrics.items():
        if len(values) == len(index):
            metrics[name] = _placed(index, values, rows())
    return metrics


def _lm_eval(file: Path, rows: Callable[[], int]) -> dict[str, NDArray[np.float64]]:
    """Read one JSON object per line, with `doc_id`, `filter`, the names of its `metrics`, and a value for each."""
    samples = list(_samples(file))
    several_filters = len({sample["filter"] for sample in samples}) > 1
    columns: dict[str, dict[int, float]] = {}  # by name and row
    for sample in samples:
        for metric in sample["metrics"]:
            value = _number(sample[metric])
            if value is not None:
                name = f"{metric},{sample['filter']}" if several_filters else metric
                columns.setdefault(name, {})[sample["doc_id"]] = value
    if not columns:
        raise ValueError("it has no numeric metric")
    return {
        name: _placed(np.array(list(value_of)), np.array(list(value_of.values())), rows())
        for name, value_of in columns.items()
    }


def _samples(file: Path) -> Iterator[dict[str, Any]]:
    for _, line in lines(file):
        if line.strip():
            sample = json.loads(line)
            if not isinstance(sample["doc_id"], int) or isinstance(sample["doc_id"], bool):
                raise ValueError(f"doc_id {sample['doc_id']!r} is not a row number")
            yield sample


def _number(value: Any) -> float | None:
    """Convert a metric to a number; a (sum, weight) pair becomes their quotient, anything else None."""
    if isinstance(value, list) and len(value) == 2 and value[1]:
        value = value[0] / value[1]
    return float(value) if isinstance(value, int | float) else None


def _placed(index: NDArray[np.int64], values: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Place values at their rows, NaN elsewhere, (N,). If a row was drawn several times, its values are equal."""
    if index.min() < 0:
        raise ValueError(f"row {index.min()} is negative")
    placed_N = np.full(max(rows, int(index.max()) + 1), np.nan)
    placed_N[index] = values
    return placed_N
