"""Stages of gpu_check.py that compare a device with float32 on a CPU, and profile training and checkpoints.

Each stage returns its measurements and descriptions of the checks that failed.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import ours
import torch
import torch.nn.functional as F
from harness import AGREEMENT, begin_peak, peak_memory, stopwatch, synchronize
from material import load
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lpsel.data.packing import Segment
from lpsel.data.tokens import Tokens
from lpsel.model.device import gpu_memory
from lpsel.model.kernel_check import PACK, ROUNDING, WINDOW, Heads, attention_errors, kernel_of
from lpsel.model.loss import PerSampleLoss, check_head, per_sample_nll
from lpsel.model.memory_estimate import training_memory
from lpsel.scoring.recorder import NLLRecorder
from lpsel.scoring.store import Parts
from lpsel.tracking.tracker import Tracker
from lpsel.training.checkpoint import Checkpoints
from lpsel.training.setup import TrainingSetup
from lpsel.training.trainer import fit

Checked = tuple[dict[str, Any], list[str]]
HEADS = {
    "OPT-350M": Heads(16, 16, 64),
    "OPT-2.7B": Heads(32, 32, 80),
    "OPT-13B, Llama 2 13B": Heads(40, 40, 128),
    "Llama 3.2 1B": Heads(32, 8, 64),
    "Llama 3 8B, Qwen3 4B": Heads(32, 8, 128),
    "SmolLM2-135M": Heads(9, 3, 64),
    "Gemma 3 270M": Heads(4, 1, 256),
}
TINY_HEADS = {"tiny, grouped": Heads(4, 2, 8), "tiny": Heads(2, 2, 16)}
WINDOWS = (None, WINDOW)
HEADS_OF_LOSS = ("own", "liger") if find_spec("liger_kernel") and torch.cuda.is_available() else ("own",)
NLL_LIMITS = {"32-true": AGREEMENT, "bf16-mixed": 0.1}  # nats
GRADIENT_LIMITS = {"32-true": 1e-3, "bf16-mixed": 5e-2}  # relative to the norm of all gradients
WARM_UP = 3  # steps and packs before the profiler starts
GAP = 100e-6  # seconds; idle times of the device from this length on are counted


def packs() -> dict[str, list[Segment]]:
    """Create packs laid out like those of `lpsel.data.packing`: prefixes, then rows, then padding tokens."""
    return {
        "rows": [Segment(0, 130), Segment(130, 131), Segment(131, 300)],
        "a prefix": [Segment(0, 41), Segment(41, 141, 0, 41), Segment(141, 142, 0, 41), Segment(142, 330, 0, 41)],
        "two prefixes, and filled up": PACK,
        "an empty pack": [Segment(0, 2)],
    }


def attention(device: str, tiny: bool) -> Checked:
    """Compare attention in packs, forward and backward, with PyTorch's SDPA in float32, one segment at a time."""
    cases, failed = [], []
    target = torch.device(device)
    for (model, heads), window, dtype in product((TINY_HEADS if tiny else HEADS).items(), WINDOWS, ROUNDING):
        for name, segments in packs().items():
            errors = attention_errors(segments, heads, window, dtype, target)
            case = {"heads": model, "window": window, "pack": name, "dtype": str(dtype)}
            worst = float(np.max([*errors.values()]))
            cases.append(case | errors | {"kernel": kernel_of(heads, dtype, target), "worst": worst})
            if not all(error <= ROUNDING[dtype] for error in errors.values()):  # also NaN
                failed.append(f"attention of {', '.join(map(str, case.values()))}: {errors}")
    worst = {str(t): float(np.max([c["worst"] for c in cases if c["dtype"] == str(t)])) for t in ROUNDING}
    return {"largest_relative_error": worst, "cases": cases}, failed


def losses_and_gradients(model: Path, tokens: Path, device: str) -> Checked:
    """Compare every row's NLL and a pack's gradients with the model's own, row by row on a CPU in float32."""
    rows = Tokens(tokens)
    exact_N, exact_gradients = _row_by_row(model, rows)
    figures: dict[str, Any] = {}
    failed = []
    for head, precision in product(HEADS_OF_LOSS, NLL_LIMITS):
        nll_N, gradients = _packed(model, rows, precision, device, head)
        squares = [((gradients[n] - g).square().sum(), g.square().sum()) for n, g in exact_gradients.items()]
        off, norm = (float(sum(each)) ** 0.5 for each in zip(*squares, strict=True))
        case = precision if head == "own" else f"{precision}, Liger's head"
        errors = figures[case] = {"nll": float(np.abs(nll_N - exact_N).max()), "gradient": off / norm}
        for what, limit in (("nll", NLL_LIMITS[precision]), ("gradient", GRADIENT_LIMITS[precision])):
            if not errors[what] <= limit:
                failed.append(f"{model.name}, {case}: {what} off by {errors[what]:.3g}, above {limit}")
    return figures, failed


def _row_by_row(folder: Path, tokens: Tokens) -> tuple[np.ndarray, dict[str, Tensor]]:
    model = load(folder)
    nll = []
    for i in range(len(tokens)):
        ids_1T = torch.tensor(tokens.input_ids(i), dtype=torch.int64)[None]
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1]
        supervised_T = torch.tensor(tokens.supervised(i))[1:]
        row = F.cross_entropy(logits_TV[supervised_T], ids_1T[0, 1:][supervised_T], reduction="sum")
        (row / int(tokens.response_tokens.sum())).backward()
        nll.append(float(row) / int(supervised_T.sum()))
    return np.array(nll), _gradients(model)


def _packed(
    folder: Path, tokens: Tokens, precision: str, device: str, head: str
) -> tuple[np.ndarray, dict[str, Tensor]]:
    loss = PerSampleLoss(load(folder, device=device)).eval()
    check_head(loss)
    loss.head = head
    data = ours.data_module(tokens, len(tokens), ours.SCORE_TOKENS, record=True)
    batch = data.pack(np.arange(len(tokens))).to(torch.device(device))
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False):
        nll_B = per_sample_nll(loss(batch), batch.row_N, batch.supervised_B)
        (loss(batch, summed=True) / len(batch.labels_N)).backward()
    return nll_B.double().cpu().numpy(), _gradients(loss.model)


def _gradients(model: Any) -> dict[str, Tensor]:
    return {name: weight.grad.cpu() for name, weight in model.named_parameters() if weight.grad is not None}


def training_and_recording(
    model: Path, tokens: Path, device: str, steps: int, batch_size: int, score_tokens: int
) -> Checked:
    """Profile training steps and packs of a recording pass as commands run them."""
    rows = Tokens(tokens)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        setup = _setup(device, Path(folder))
        spec = ours.spec_of(model)
        mask_N = np.zeros(len(rows), bool)
        mask_N[ours.order_of(rows)[: steps * batch_size]] = True
        precision = setup.precision(spec, str(model))
        pack = ours.largest_pack(model, precision, score_tokens, device)
        for name, epochs, options in (
            ("training", 1, {"mask": mask_N, "batch_size": batch_size}),
            ("recording", 0, {"record": True, "score_tokens": pack}),
        ):
            data = setup.data_module(rows, spec, **options)
            module = setup.fine_tuner("target", spec, str(model), steps)
            watch = Watch(device)
            recorder = [NLLRecorder(Parts(Path(folder) / "parts"))] if not epochs else []
            checkpoints = Path(folder) / "checkpoints"
            fit(setup, module, data, epochs=epochs, title=name, callbacks=[*recorder, watch], checkpoints=checkpoints)
            figures[name] = watch.figures()
        whole = training_memory(
            load(model).to("meta"),
            spec,
            precision=precision,
            eight_bits=False,
            adapter=None,
            checkpointing=False,
            pack=setup.train_tokens,
            shards=1,
            gpu=gpu_memory(torch.device(device)),
        )
    training = figures["training"]
    training["estimated_bytes"] = whole.total
    training["peak_of_estimate"] = training["peak_bytes"] / whole.total
    # On a CPU the process has more than the model in memory.
    fits = device == "cpu" or training["peak_of_estimate"] <= 1
    return figures, [] if fits else [f"training: peak memory {training['peak_of_estimate']:.2f} of the estimate"]


def _setup(device: str, folder: Path) -> TrainingSetup:
    trainer = {
        "_target_": "lightning.pytorch.Trainer",
        "accelerator": "gpu" if device == "cuda" else "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "precision": "bf16-mixed",
    }
    adamw = {"_target_": "torch.optim.AdamW", "fused": True}
    sizes = (ours.TRAIN_TOKENS, ours.SCORE_TOKENS)
    return TrainingSetup(trainer, adamw, False, False, *sizes, 10**9, folder, folder, Tracker())


class Watch(L.Callback):
    """Profiles steps or packs after the first WARM_UP: how long the device is idle and the host waits for it."""

    def __init__(self, device: str) -> None:
        self.device = device
        activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
        self.profiler = profile(activities=[activity])
        self.done = 0
        self.loaded = 0

    def on_fit_start(self, *_: Any) -> None:
        self.loaded = begin_peak(self.device)

    def on_train_batch_end(self, *_: Any) -> None:
        self.done += 1
        if self.done == WARM_UP:
            synchronize(self.device)
            self.profiler.start()
            self.began = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        synchronize(self.device)
        self.seconds = time.perf_counter() - self.began
        self.profiler.stop()
        self.peak = peak_memory(self.device)

    on_validation_start, on_validation_batch_end, on_validation_end = on_fit_start, on_train_batch_end, on_train_end

    def figures(self) -> dict[str, Any]:
        """Return measurements per step or pack, and the longest gap."""
        events = self.profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        kind = torch.autograd.DeviceType.CUDA if self.device == "cuda" else torch.autograd.DeviceType.CPU
        spans = sorted((e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.device_type() == kind)
        gaps = np.array(_gaps(spans)) / 1e9
        waits = [e for e in events if "Synchronize" in e.name()]
        count = self.done - WARM_UP
        return {
            "profiled": count,
            "seconds": self.seconds / count,
            "device_busy_percent": 100 * (1 - float(gaps.sum()) / self.seconds),
            "longest_gap_seconds": float(gaps.max(initial=0)),
            "gaps": int((gaps > GAP).sum()) / count,
            "seconds_in_gaps": float(gaps[gaps > GAP].sum()) / count,
            "waits": {name: number / count for name, number in Counter(e.name() for e in waits).items()},
            "seconds_waiting": sum(e.duration_ns() for e in waits) / 1e9 / count,
            "device_operations": len(spans) / count,
            "peak_bytes": self.peak,
            "peak_bytes_above_start": self.peak - self.loaded,
        }


def _gaps(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Compute gaps in nanoseconds between spans sorted by start, excluding time covered by earlier spans."""
    gaps, end = [], spans[0][0] if spans else 0
    for start, stop in spans:
        if start > end:
            gaps.append(start - end)
        end = max(end, stop)
    return gaps


def checkpoint(model: Path, tokens: Path, device: str, batch_size: int) -> Checked:
    """Time writing and reading a checkpoint with AdamW's states, and check that it restores the weights."""
    rows = Tokens(tokens)
    with tempfile.TemporaryDirectory() as folder:
        setup = _setup(device, Path(folder))
        spec = ours.spec_of(model)
        mask_N = np.zeros(len(rows), bool)
        mask_N[ours.order_of(rows)[: 2 * batch_size]] = True
        data = setup.data_module(rows, spec, mask=mask_N, batch_size=batch_size)
        saved = _Saved(device, Path(folder) / "written")
        module = setup.fine_tuner("target", spec, str(model), 2)
        fit(setup, module, data, epochs=1, title="checkpoint", callbacks=[saved], checkpoints=Path(folder) / "none")
    return saved.figures, saved.failed


class _Saved(L.Callback):
    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder = device, folder

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx != 1:
            return
        model, optimizer = pl_module.language_model, trainer.optimizers[0]
        checkpoints = Checkpoints(self.folder, trainer.strategy)
        before = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}
        seconds = stopwatch(self.device)
        checkpoints.save(2, model, optimizer, {})
        wrote = seconds()
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
        seconds = stopwatch(self.device)
        checkpoints.load(model, optimizer)
        size = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        self.figures = {"bytes": size, "seconds_to_write": wrote, "seconds_to_read": seconds()}
        changed = [name for name, weight in model.named_parameters() if not torch.equal(weight.cpu(), before[name])]
        self.failed = [f"checkpoint: {len(changed)} weights differ after reading it, {changed[0]}"] if changed else []
