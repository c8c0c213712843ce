"""Test whether a small judge can tell a model from the same model with damaged weights, and print a table.

    python examples/judge_sanity.py MODELS PROMPTS OUT

MODELS contains smollm2-135m and gemma3-270m as Hugging Face folders, PROMPTS contains koala.jsonl; runs go to OUT. The
damaged model is the baseline. Judges are Gemma-3-270M on this machine and SmolLM2-135M behind `transformers serve`.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lpsel.cli import quiet_libraries
from lpsel.commands.job import run

PROMPTS = 40
NOISE = 0.6  # standard deviation of the added noise, relative to that of each matrix


def main(models: Path, prompts: Path, out: Path) -> None:
    quiet_libraries()
    model, judge = models / "smollm2-135m", models / "gemma3-270m"
    damaged = damage(model, out / "damaged")
    common = [
        "evaluator=pairwise",
        f"models={model}",
        f"baseline={damaged}",
        "prompts=koala",
        f"prompts_dir={prompts}",
        f"evaluator.limit={PROMPTS}",
        "evaluator.max_new_tokens=64",
        "tracker=none",
        f"cache_dir={out / 'cache'}",
    ]
    results = {
        "hf, Gemma-3-270M": run(
            "evaluate",
            [*common, "judge=hf", f"judge.model.path={judge}", "judge.model.template=plain"],
            out / "hf",
        )
    }
    with served(model) as url:
        at = ["judge=openai-letter", f"judge.model={model}", f"judge.base_url={url}", "judge.concurrency=2"]
        results["transformers serve, SmolLM2-135M"] = run("evaluate", [*common, *at], out / "served")
    Console(width=130).print(table(results))


def damage(model: Path, folder: Path) -> Path:
    """Save the model with noise added to every matrix, from a fixed seed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for weight in whole.parameters():
            if weight.dim() == 2:
                weight += NOISE * weight.std() * torch.randn_like(weight)
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Run `transformers serve` on the loopback interface until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(model), "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def table(results: dict[str, dict[str, Any]]) -> Table:
    columns = ("judge", "wins", "ties", "losses", "failed", "win rate %", "p", "flips %", "first shown wins %")
    shown = Table(*columns, title=f"SmolLM2-135M against itself with damaged weights, {PROMPTS} Koala prompts")
    for judge, found in results.items():
        rate = "-" if found["win_rate"] is None else f"{found['win_rate']:.1f}"
        if found["ci_low"] is not None:
            rate += f" [{found['ci_low']:.1f}, {found['ci_high']:.1f}]"
        first = found["models"][0]["judging"]["first_shown_wins"]
        flips, p = found["flip_rate"], found["p_value"]
        cells = ["-" if value is None else f"{value:.3g}" for value in (p, flips, first)]
        counts = [str(found[name]) for name in ("wins", "ties", "losses", "failed")]
        shown.add_row(judge, *counts, rate, *cells)
    return shown


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
