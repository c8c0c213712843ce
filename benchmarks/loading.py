"""Measure each rank's peak host memory while loading a model on two CPU ranks with ddp and fsdp (part of `make bench`).

    python benchmarks/loading.py --model FOLDER

The default model is SmolLM2-135M in the folder LPSEL_TEST_MODELS or, without it, a random Llama, stored in float32 (as
it is trained) and in bfloat16. Numbers exclude memory after imports. The system can reclaim the part of the peak that
is memory-mapped pages of the file; the rest is private to the rank.
"""

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import ours
import torch
from harness import arguments, begin_peak, imported, quiet_libraries, resident, show, write
from material import existing, random_llama, smollm2

from lpsel.model.copies import end_with_parent
from lpsel.model.fsdp import ShardedStrategy
from lpsel.model.lightning_module import FineTuner

RANKS = 2
PRECISION = "32-true"


def main(argv: list[str] | None = None) -> Path:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=existing, default=smollm2())
    options = parser.parse_args(argv)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if options.tiny or model is None:
            model = random_llama(Path(folder) / "random Llama", layers=8, hidden=512, vocabulary=2048)
        figures = []
        for stored in (torch.float32, torch.bfloat16):
            copy = _stored(model, stored, Path(folder) / str(stored))
            size = sum(part.stat().st_size for part in copy.glob("*.safetensors"))
            for strategy in ("ddp", "fsdp"):
                about = {"stored": str(stored).removeprefix("torch."), "file_bytes": size, "strategy": strategy}
                figures.append({**about, "ranks": _ranks(strategy, copy)})
    show(
        f"Loading {model.name} in {PRECISION}: host MiB, in brackets the rank's own",
        ["stored in", "file", "", *(f"rank {rank}, peak" for rank in range(RANKS)), "kept afterwards"],
        [
            [
                figure["stored"],
                _mib(figure["file_bytes"]),
                figure["strategy"],
                *(f"{_mib(rank['peak'])} ({_mib(rank['own'])})" for rank in figure["ranks"]),
                _mib(max(rank["kept"] for rank in figure["ranks"])),
            ]
            for figure in figures
        ],
    )
    return write(options.out, "loading", options, "cpu", {"model": model.name, "loads": figures})


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def _stored(model: Path, dtype: torch.dtype, folder: Path) -> Path:
    """Copy the model's folder with its weights converted to a dtype."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(model, dtype=dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def _ranks(strategy: str, model: Path) -> list[dict[str, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(max_workers=RANKS, mp_context=imported()) as executor:
        return list(executor.map(partial(_load, strategy, model, port), range(RANKS)))


def _load(strategy: str, model: Path, port: int, rank: int) -> dict[str, int]:
    """Load the model; return this rank's added memory in bytes: peak, private part of the peak, and what remains."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    quiet_libraries()
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "loading",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    chosen: Any = ShardedStrategy() if strategy == "fsdp" else strategy
    trainer = L.Trainer(accelerator="cpu", devices=RANKS, strategy=chosen, logger=False, enable_checkpointing=False)
    module: FineTuner = ours.fine_tuner(model, 1, PRECISION)
    module.trainer = trainer
    trainer.strategy.connect(module)
    trainer.strategy.setup_environment()
    before = begin_peak()
    with _largest_own() as sampled:
        module.configure_model()
    memory = {"peak": resident("VmHWM") - before, "own": max(sampled) - sampled[0], "kept": resident("VmRSS") - before}
    torch.distributed.destroy_process_group()
    return memory


@contextmanager
def _largest_own() -> Iterator[list[int]]:
    """Sample the bytes that are not file pages (RssAnon) 500 times per second, starting with the value before."""
    seen, done = [resident("RssAnon")], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            seen.append(resident("RssAnon"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
