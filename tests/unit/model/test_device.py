"""The precision that `auto` selects, the device a model is loaded on, and the reuse of freed memory."""

import os
import platform
import resource
import subprocess
import sys
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from transformers import LlamaConfig

from lpsel.errors import UserError
from lpsel.model import device
from lpsel.model.adapter import Adapter
from lpsel.model.device import (
    bfloat16_speedup,
    device_of,
    resolve_precision,
    return_freed_memory,
    reuse_freed_memory,
    time_ratio,
    use_one_device,
)
from lpsel.model.kernel_check import check_kernel
from lpsel.model.lightning_module import FineTuner
from lpsel.model.spec import ModelSpec


@pytest.mark.parametrize(("visible", "taken"), [("", ["0", "1", "2", "0"]), ("4,6,7", ["4", "6", "7", "4"])])
def test_parallel_jobs_take_different_gpus(monkeypatch, visible, taken):
    for job, gpu in enumerate(taken):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        use_one_device("auto", job)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        use_one_device("auto", job + 1)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu, "a later job of the same process"


def test_apple_gpus_are_used_on_request_only(monkeypatch, tmp_path, caplog):
    with pytest.raises(UserError) as caught:
        device_of("mps")
    assert (caught.value.name, caught.value.hint) == ("trainer.accelerator", "set trainer=cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "NVIDIA_DRIVER", tmp_path / "none")
    assert device_of("auto").type == "cpu"
    assert [device_of("mps").type, device_of("mps").type] == ["mps", "mps"]
    assert [m.split(":")[0] for m in caplog.messages] == ["trainer.accelerator=mps is untested"]


@pytest.mark.parametrize(("major", "precision"), [(7, "32-true"), (8, "bf16-mixed"), (9, "bf16-mixed")])
def test_auto_selects_bfloat16_where_a_gpu_computes_it_not_where_it_emulates_it(monkeypatch, major, precision):
    monkeypatch.setattr(torch.version, "hip", None)
    for name, answer in {
        "is_available": True,
        "current_device": 0,
        "get_device_properties": SimpleNamespace(major=major),
        "_check_bf16_tensor_supported": True,  # as on a V100
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    assert resolve_precision("auto", "auto") == precision
    monkeypatch.setattr("lpsel.model.device.bfloat16_speedup", lambda: 0.3)
    assert resolve_precision("auto", "cpu", 576) == "32-true", "whatever the GPU can do"


@pytest.mark.parametrize(
    ("speedup", "hidden_size", "precision"),
    [(0.3, 576, "32-true"), (1.2, 576, "32-true"), (3.0, 576, "bf16-mixed"), (3.0, 128, "32-true")],
)
def test_auto_selects_bfloat16_for_wide_models_on_cpus_that_multiply_it_fast(
    monkeypatch, speedup, hidden_size, precision
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("lpsel.model.device.bfloat16_speedup", lambda: speedup)
    assert resolve_precision("auto", "auto", hidden_size) == precision
    assert resolve_precision("32-true", "auto", hidden_size) == "32-true"


def test_the_speed_of_bfloat16_is_measured_once():
    assert bfloat16_speedup() == bfloat16_speedup() > 0


def test_interruptions_do_not_change_a_time_ratio(monkeypatch):
    """A third of the runs of each are interrupted, the first of them at the start."""
    monkeypatch.setattr(device, "timeit", lambda work, number: work())
    first, second = cycle([20.0, 1.0, 1.0]), cycle([2.0, 30.0, 2.0])
    assert time_ratio(lambda: next(first), lambda: next(second)) == 0.5


EMULATED = (
    "import torch; from lpsel.model.device import resolve_precision; print(resolve_precision('auto', 'auto', 576))"
)


@pytest.mark.slow  # PyTorch is imported again
@pytest.mark.skipif(platform.machine() != "x86_64", reason="a setting of oneDNN on x86")
@pytest.mark.skipif(torch.cuda.is_available(), reason="auto decides by the GPU")
def test_auto_selects_float32_where_the_cpu_emulates_bfloat16():
    emulating = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", EMULATED], check=True, capture_output=True, text=True, env=emulating)
    assert done.stdout.strip() == "32-true"


@pytest.mark.parametrize("adapter", [None, Adapter(rank=2)], ids=["whole", "lora"])
def test_a_model_is_loaded_on_the_cpu_whatever_the_default_device(make_folder, adapter):
    """Lightning makes the GPU the default device while the model is created; here, the meta device stands in for it."""
    folder = make_folder()
    spec = ModelSpec("small", path=folder, max_length=64)
    module = FineTuner("target", spec, folder, partial(torch.optim.AdamW), 1, adapter=adapter)
    module.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with torch.device("meta"):
        module.configure_model()
    assert {p.device.type for p in module.parameters()} == {"cpu"}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_kernel_is_checked_whatever_the_default_device_and_dtype(precision):
    default = torch.get_default_dtype()
    torch.set_default_dtype(precision)  # as Lightning does with trainer.precision=bf16-true
    try:
        with torch.device("meta"):
            check_kernel(LlamaConfig(hidden_size=32, num_attention_heads=4), torch.bfloat16, torch.device("cpu"))
    finally:
        torch.set_default_dtype(default)


def count_page_faults():
    """Prints how many a pass causes before and after `reuse_freed_memory`."""

    def faults():
        counts = []
        for _ in range(12):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(20, 2**20).add(1)  # two blocks of 80 MiB
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return min(counts)

    print(faults())
    reuse_freed_memory()
    print(faults())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_reused_without_page_faults(as_ranks, tmp_path):
    """160 MiB are 40,960 pages, each of which the kernel would clear again."""
    as_ranks(1, count_page_faults)
    default, reused = map(int, (tmp_path / "out0").read_text().split())
    assert default > 10_000
    assert reused < 100


def leave_holes():
    """Prints the resident MiB after 200 blocks of 2 MiB were freed between others, and after `return_freed_memory`."""

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() // 2**20

    reuse_freed_memory()
    blocks = [torch.ones(2**19) for _ in range(400)]
    del blocks[::2]
    print(resident())
    return_freed_memory()
    print(resident())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a function of glibc")
def test_memory_between_blocks_that_are_in_use_is_returned(as_ranks, tmp_path):
    as_ranks(1, leave_holes)
    before, after = map(int, (tmp_path / "out0").read_text().split())
    assert before - after > 350  # of 400 MiB


def test_a_gpu_that_pytorch_cannot_use_is_explained(monkeypatch, tmp_path, caplog):
    old = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"

    def too_old():
        raise RuntimeError(f"{old}\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    monkeypatch.setattr(device, "NVIDIA_DRIVER", tmp_path)
    with pytest.raises(UserError) as caught:
        device_of("gpu")
    assert caught.value.problem == f"CUDA does not work here ({old})"
    assert [device_of("auto").type, device_of("auto").type, device_of("cpu").type] == ["cpu"] * 3
    said = f"This machine has an NVIDIA driver, but the CPU is used: {old} (trainer=cpu is quiet)"
    assert caplog.messages == [said]


def test_gpus_of_several_kinds_are_named(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: ["NVIDIA L4", "NVIDIA L4", "NVIDIA A10G"][i])
    device.warn_of_mixed_gpus(2)
    assert not caplog.messages
    device.warn_of_mixed_gpus(3)
    assert caplog.messages[0].startswith("The GPUs differ (NVIDIA A10G, NVIDIA L4): ")
