"""What differs on a GPU before any kernel runs: the precision that `auto` means, where a model is loaded."""

from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from lpsel.model.adapter import Adapter
from lpsel.model.device import resolve_precision
from lpsel.model.lightning_module import FineTuner
from lpsel.model.spec import ModelSpec


@pytest.mark.parametrize(("major", "precision"), [(7, "32-true"), (8, "bf16-mixed"), (9, "bf16-mixed")])
def test_bfloat16_is_chosen_where_a_gpu_computes_it_not_where_it_emulates_it(monkeypatch, major, precision):
    monkeypatch.setattr(torch.version, "hip", None)
    for name, answer in {
        "is_available": True,
        "current_device": 0,
        "get_device_properties": SimpleNamespace(major=major),
        "_check_bf16_tensor_supported": True,  # as a V100 answers
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    assert resolve_precision("auto") == precision


@pytest.mark.parametrize("adapter", [None, Adapter(rank=2)], ids=["whole", "lora"])
def test_a_model_is_loaded_on_the_cpu_whatever_the_default_device(make_folder, adapter):
    """Lightning makes the GPU the default device while it asks for the model; here the meta device stands for it."""
    folder = make_folder()
    spec = ModelSpec("small", path=folder, max_length=64)
    module = FineTuner("target", spec, folder, partial(torch.optim.AdamW), 1, adapter=adapter)
    module.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with torch.device("meta"):
        module.configure_model()
    assert {p.device.type for p in module.parameters()} == {"cpu"}
