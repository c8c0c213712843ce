"""Peak host memory of each rank while a model is loaded onto two CPU ranks, by ddp and by fsdp (part of `make bench`).

    python benchmarks/loading.py --model FOLDER

Without a folder SmolLM2-135M in the folder that LPSEL_TEST_MODELS names is taken, without that a random Llama. Figures
are above what a rank has after its imports. A file in the precision asked for is mapped into memory, not copied: its
pages count as resident, but the system can take them back.
"""

import os
import socket
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import ours
import torch
from harness import arguments, begin_peak, end_with_parent, hush, imported, resident, show, write
from material import existing, random_llama, smollm2

from lpsel.model.module import FineTuner
from lpsel.model.shard import ShardedStrategy

RANKS = 2
PRECISION = "32-true"


def main(argv: list[str] | None = None) -> Path:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=existing, default=smollm2())
    options = parser.parse_args(argv)
    hush()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if options.tiny or model is None:
            text = Path(folder) / "text"
            text.write_text("A tokenizer is not needed here.")
            model = random_llama(Path(folder) / "random Llama", text, layers=8, hidden=512, vocabulary=2048)
        file = sum(part.stat().st_size for part in model.glob("*.safetensors"))
        figures = {strategy: _ranks(strategy, model) for strategy in ("ddp", "fsdp")}
    show(
        f"Loading {model.name}: host MiB",
        ["", *(f"rank {rank}, peak" for rank in range(RANKS)), "kept afterwards"],
        [
            [strategy, *(f"{r['peak'] / 2**20:,.0f}" for r in ranks), f"{max(r['kept'] for r in ranks) / 2**20:,.0f}"]
            for strategy, ranks in figures.items()
        ],
        [f"a file of {file / 2**20:,.0f} MiB, loaded in {PRECISION}"],
    )
    return write(options.out, "loading", options, "cpu", {"model": model.name, "file_bytes": file, "ranks": figures})


def _ranks(strategy: str, model: Path) -> list[dict[str, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(max_workers=RANKS, mp_context=imported()) as executor:
        return list(executor.map(partial(_load, strategy, model, port), range(RANKS)))


def _load(strategy: str, model: Path, port: int, rank: int) -> dict[str, int]:
    """Bytes of this rank above what it had before: the most, and what stayed."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    hush()
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
    module.configure_model()
    memory = {"peak": resident("VmHWM") - before, "kept": resident("VmRSS") - before}
    torch.distributed.destroy_process_group()
    return memory


if __name__ == "__main__":
    main()
