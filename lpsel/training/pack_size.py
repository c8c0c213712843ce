"""Implement `train_tokens=auto`: choose training packs that fit into this machine's memory."""

import logging
from functools import partial
from typing import Any

import lightning as L
import torch

from lpsel.data.datamodule import SubsetDataModule
from lpsel.distributed import is_main_process
from lpsel.model.device import gpu_memory, total_memory
from lpsel.model.fsdp import ShardedStrategy
from lpsel.model.lightning_module import FineTuner
from lpsel.model.load import load_config
from lpsel.model.memory_estimate import USABLE, DeviceMemory, training_memory, training_pack, training_packs
from lpsel.model.threads import SMALL_MODEL
from lpsel.training.setup import TrainingSetup

log = logging.getLogger(__name__)


class PackSize(L.Callback):
    """Sets `data.train_tokens` before training starts, to the same value on all ranks.

    It depends on the total memory of the device, not on free memory, so that resumed runs give the same result.
    """

    def __init__(self, setup: TrainingSetup, title: str, data: SubsetDataModule) -> None:
        self.settings, self.title, self.data = setup, title, data  # `setup` is a method of callbacks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, FineTuner)
        spec = pl_module.spec
        if self.settings.train_tokens != "auto" or stage != "fit" or spec.tiny or spec.recipe.dropout:
            return
        from transformers import AutoModelForCausalLM

        config = load_config(spec, pl_module.path)
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
        except ValueError:  # not a causal language model; reported when it is loaded
            return
        if model.num_parameters() < SMALL_MODEL:
            return
        device = trainer.strategy.root_device
        memory = total_memory(device) / (trainer.num_devices if device.type == "cpu" else 1)
        estimate = partial(self._estimate, model, trainer, pl_module)
        pack = trainer.strategy.broadcast(training_pack(device.type, USABLE[device.type] * memory, estimate))
        self.data.train_tokens = pack
        if pack < training_packs(device.type)[0] and is_main_process():
            needed, gib = estimate(pack).total / 2**30, memory / 2**30
            message = "%s: packs of %s tokens, with which training needs about %.1f of %.1f GiB (train_tokens=auto)"
            log.info(message, self.title, f"{pack:,}", needed, gib)

    def _estimate(self, model: Any, trainer: L.Trainer, module: FineTuner, pack: int) -> DeviceMemory:
        strategy: Any = trainer.strategy
        return training_memory(
            model,
            module.spec,
            precision=module.precision,
            eight_bits=self.settings.eight_bits,
            adapter=module.adapter,
            checkpointing=module.activation_checkpointing,
            pack=pack,
            shards=strategy.shards if isinstance(strategy, ShardedStrategy) else 1,
            layers_stay=isinstance(strategy, ShardedStrategy) and not strategy.reshard_after_forward,
            gpu=gpu_memory(strategy.root_device),
        )
