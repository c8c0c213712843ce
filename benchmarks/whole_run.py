"""Compare a whole run of `train.py selection=lp_app` with another commit: time, CPU time and peak memory.

    git worktree add ../before COMMIT
    python benchmarks/whole_run.py --old ../before

Both sides train scorer and target from the same folder on the same rows, with their own default settings and an empty
cache. Above 1, this checkout is faster. Peak memory is the largest resident memory of the process, libraries included,
minus the weights and AdamW's two moments in float32.
"""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, arguments, in_words, interleave, ratios, run_command, show, spread, write
from material import add_options, existing, from_options
from safetensors import safe_open

STATE_BYTES = 3 * 4  # a weight and its two moments
FIGURES = ("seconds", "cpu_seconds", "peak_bytes")


def main(argv: list[str] | None = None) -> Path:
    parser = arguments(__doc__)
    parser.add_argument("--old", type=existing, required=True, help="a checkout of the other commit")
    parser.add_argument("--embedder", type=existing, help="a sentence-transformers folder; without it, no clusters")
    add_options(parser, rows=300)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows, data, model = from_options(options, Path(folder))
        overrides = ["scorer=smollm2-135m", f"scorer.path={model}", "model=smollm2-135m", f"model.path={model}"]
        overrides += ["dataset=alpaca", f"dataset.path={rows}", "selection=lp_app", "pct=10", "tracker=none"]
        overrides.append(f"cluster.embedder={options.embedder}" if options.embedder else "cluster=none")
        sides = {"old": options.old.resolve(), "new": HERE.parent}
        contestants = {side: partial(whole_run, checkout, overrides) for side, checkout in sides.items()}
        runs = interleave(contestants, options.rounds)
        states, count = STATE_BYTES * parameters(model), len(rows.read_text().splitlines())
    measured = {side: {what: [run[what] for run in each] for what in FIGURES} for side, each in runs.items()}
    ratio = {what: ratios(measured["old"][what], measured["new"][what]) for what in FIGURES}
    table = []
    for side, of_runs in measured.items():
        median = {what: spread(values)["median"] for what, values in of_runs.items()}
        above = (median["peak_bytes"] - states) / 2**30
        table.append([side, f"{median['seconds']:.1f}", f"{median['cpu_seconds']:.1f}", f"{above:.2f}"])
    table.append(["old / new", *(in_words(ratio[what]) for what in FIGURES[:2]), ""])
    heads = ["", "s", "CPU seconds", "peak GiB above weights and moments"]
    show(f"lp_app, {count} rows of {data}, {model.name}: medians", heads, table)
    figures = {"data": data, "model": model.name, "state_bytes": states, "runs": runs, "ratio": ratio}
    return write(options.out, "whole_run", options, "cpu", figures)


def whole_run(checkout: Path, overrides: list[str]) -> dict[str, float]:
    """Run a checkout's train.py once; return seconds, CPU seconds and peak resident bytes."""
    with tempfile.TemporaryDirectory() as folder:
        # train.py moves its own folder behind the installed packages, one of which may be another checkout's lpsel.
        Path(folder, "path").mkdir()
        Path(folder, "path", "lpsel").symlink_to(checkout / "lpsel")
        environment = {**os.environ, "PYTHONPATH": f"{folder}/path", "LPSEL_CACHE": f"{folder}/cache"}
        return run_command(["train.py", *overrides, f"hydra.run.dir={folder}/run"], environment, checkout)


def parameters(model: Path) -> int:
    shapes: list[Any] = []
    for file in model.glob("*.safetensors"):
        with safe_open(file, "numpy") as tensors:
            shapes += [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118  # not a mapping
    return int(sum(np.prod(shape) for shape in shapes))


if __name__ == "__main__":
    main()
