"""LightningModule with optimizer steps over several micro-batches, and recording passes for per-sample losses."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.random import SeedSequence
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lpsel.data.batching import Rows
from lpsel.data.packing import MicroBatch, OptimizerStep
from lpsel.distributed import is_main_process, pending_signal
from lpsel.errors import ReportedByMainProcess, UserError
from lpsel.model.adapter import AdaptedModel, Adapter
from lpsel.model.decoder_layers import checkpoint_layers, compile_layers, compiling_pays
from lpsel.model.device import RETURN_SECONDS, return_freed_memory, reuse_freed_memory
from lpsel.model.fsdp import ShardedStrategy, load_sharded
from lpsel.model.kernel_check import check_kernel
from lpsel.model.load import freeze_other_parts, load_model
from lpsel.model.loss import Measure, PerSampleLoss, check_head, per_sample_nll
from lpsel.model.spec import ModelSpec, Recipe

log = logging.getLogger(__name__)

# B rows in a micro-batch, R rows in a global batch


class FineTuner(L.LightningModule):
    """Fine-tunes a causal language model on responses.

    The loss of a step is the mean NLL over the whole global batch (`Recipe.reduction`), however the batch is split
    across packs and ranks. Without dropout, the same holds for the gradient. If the loss or gradient of a step is not
    finite, training ends before the weights change.

    Args:
        role: scorer or target; the prefix of logged metrics.
        spec: settings of the model and of its fine-tuning.
        path: folder or Hub id to load the model from, see `lpsel.model.load.locate`.
        optimizer: factory that takes the parameters and `lr=`.
        total_steps: length of the learning-rate schedule in optimizer steps.
        precision: 32-true, bf16-mixed or bf16-true, see `lpsel.model.device.resolve_precision`.
        adapter: adapter to train instead of the model's own weights.
        activation_checkpointing: whether to keep only the inputs of each layer for the backward pass.
        compiled: whether to compile the layers; `auto`: if that saves time.
        head: implementation of the output head and loss, see `PerSampleLoss`.
        measure: what recording passes compute for every supervised token instead of its NLL.

    Attributes:
        tokens_ahead: tokens in the remaining forward passes, used by `compiled="auto"`.
        step_nll: loss of the last optimizer step over all ranks.
        signaled: whether any rank had received a signal by then; the same on all ranks.
        memory_returned: on a CPU, when freed memory was last returned to the system.
    """

    def __init__(
        self,
        role: str,
        spec: ModelSpec,
        path: str,
        optimizer: Callable[..., Any],
        total_steps: int,
        *,
        precision: str = "32-true",
        adapter: Adapter | None = None,
        activation_checkpointing: bool = False,
        compiled: bool | str = False,
        head: str = "own",
        measure: Measure | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.role, self.spec, self.path = role, spec, path
        self.make_optimizer, self.total_steps = optimizer, total_steps
        self.precision, self.adapter, self.measure = precision, adapter, measure
        self.activation_checkpointing, self.compiled, self.head = activation_checkpointing, compiled, head
        self.adapted: AdaptedModel | None = None
        self.loss: PerSampleLoss  # set by configure_model
        self.step_nll, self.signaled = math.nan, False
        self.tokens_ahead = 0
        self.memory_returned = time.monotonic()

    def configure_model(self) -> None:
        if hasattr(self, "loss"):
            return
        strategy, precision = self.trainer.strategy, self.precision
        dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
        if strategy.root_device.type == "cpu":
            reuse_freed_memory()
        if isinstance(strategy, ShardedStrategy):
            compiled = self.compiled is True
            prepare = partial(self._prepare, compiled=compiled)
            self.loss = load_sharded(self.spec, self.path, dtype, strategy, precision, prepare)
        else:
            # Lightning makes the GPU the default device here, which transformers supports only with accelerate.
            with torch.device("cpu"):
                if self.adapter is not None:
                    self.adapted = self.adapter.load(self.spec, self.path, precision, strategy.root_device)
                model = self.adapted.model if self.adapted else load_model(self.spec, self.path, dtype)
                self.loss = PerSampleLoss(model, packed=False if self.spec.recipe.dropout else None)
                check_head(self.loss)
                compiled = self._compiles(model)  # after check_head, so as not to compile for its few tokens
                self._prepare(model, compiled)
        if compiled:
            self.loss.compile_nll()
        self.loss.eval()
        self.loss.head = self.head
        if strategy.root_device.type == "cuda" and self.loss.attention and precision != "32-true":
            check_kernel(self.language_model.config, torch.bfloat16, strategy.root_device)

    def _prepare(self, model: Any, compiled: bool) -> None:
        if self.adapter is None:
            freeze_other_parts(model)
        if self.activation_checkpointing:
            checkpoint_layers(model)
        if compiled:
            compile_layers(model)

    def _compiles(self, model: Any) -> bool:
        """Whether to compile the model's layers; `auto` does so for long single-process runs on a CPU."""
        if self.compiled != "auto":
            return bool(self.compiled)
        on_one_cpu = self.trainer.strategy.root_device.type == "cpu" and self.trainer.world_size == 1
        supported = on_one_cpu and self.adapter is None and self.loss.attention is not None
        if not (supported and compiling_pays(model, self.tokens_ahead)):
            return False
        log.info("Compiling the layers of %s %s (compile=false turns this off)", self.role, self.spec.name)
        return True

    @property
    def language_model(self) -> Any:
        return self.loss.model

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.spec.recipe
        trained = [p for p in self.language_model.parameters() if p.requires_grad]
        optimizer = self.make_optimizer(trained, lr=recipe.learning_rate)
        factor = partial(learning_rate_factor, recipe, self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, step: OptimizerStep, batch_idx: int) -> None:
        if not step.micro_batches:
            return
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        rank_loss = self._accumulate_gradients(step)
        # For sharded weights, this norm is over the slices of all ranks; Lightning's clipping does not support that.
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(weights, self.spec.recipe.max_grad_norm)
        gradient_norm = self._reduce_over_ranks(rank_loss, norm)
        if not (math.isfinite(self.step_nll) and math.isfinite(gradient_norm)):
            raise self._diverged(step, batch_idx, gradient_norm)
        optimizer.step()
        # Gradients are views of DDP's buckets; DDP would otherwise keep them in addition to those of the next step.
        is_ddp = isinstance(self.trainer.strategy.model, DistributedDataParallel)
        optimizer.zero_grad(set_to_none=not is_ddp)
        scheduler.step()
        if rank_loss.device.type == "cpu" and time.monotonic() - self.memory_returned >= RETURN_SECONDS:
            return_freed_memory()
            self.memory_returned = time.monotonic()
        self.log_number("nll", self.step_nll)
        self.log_number("learning_rate", scheduler.get_last_lr()[0])

    def _accumulate_gradients(self, step: OptimizerStep) -> Tensor:
        """Accumulate the gradients of this rank's micro-batches; returns the sum of their losses."""
        if self.spec.recipe.dropout:  # so that a resumed run draws the same masks in this step
            seed = (self.spec.recipe.seed, self.trainer.global_step, self.trainer.global_rank)
            torch.manual_seed(int(SeedSequence(seed).generate_state(1)[0]))
            self.loss.train()
        model = self.trainer.strategy.model
        rank_loss = torch.zeros((), device=self.trainer.strategy.root_device)
        for i, batch in enumerate(step.micro_batches):
            if isinstance(model, DistributedDataParallel):  # reduce gradients only with the last micro-batch
                model.require_backward_grad_sync = i == len(step.micro_batches) - 1
            # Strategies average gradients over ranks, but the loss is a sum over ranks.
            loss = self.loss(batch, summed=True) * (self.trainer.world_size / step.divisor)
            self.manual_backward(loss)
            rank_loss += loss.detach()
        self.loss.eval()
        return rank_loss

    def _reduce_over_ranks(self, rank_loss: Tensor, gradient_norm: Tensor) -> float:
        """Set `step_nll` and `signaled`, and return the gradient norm; all are the same on all ranks.

        This is the only host-device synchronization in a step.
        """
        mean = torch.stack([rank_loss, torch.full_like(rank_loss, pending_signal() is not None)])
        if (world := self.trainer.world_size) > 1:
            torch.distributed.all_reduce(mean)  # Lightning's `reduce` would wait for the device and all ranks first
            mean /= world
        if isinstance(gradient_norm, DTensor):
            gradient_norm = gradient_norm.full_tensor()
        numbers = torch.cat([mean, gradient_norm.to(rank_loss.device).float()[None]])
        self.step_nll, signals, norm = numbers.tolist()
        self.signaled = signals > 0
        return norm

    def log_number(self, name: str, value: float) -> None:
        """Log a number for one optimizer step without a blocking transfer to the device."""
        self.log(f"{self.role}/{name}", torch.tensor(float(value)), batch_size=1, on_step=True, on_epoch=False)

    def on_train_end(self) -> None:
        # Lightning's own teardown would move the optimizer states to the host.
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    def cpu(self) -> "FineTuner":
        """Leave the weights on a GPU after training: Lightning's teardown would copy them to the host on every rank."""
        return super().cpu() if self.device.type == "cpu" else self

    def validation_step(self, batch: MicroBatch, _batch_idx: int) -> Tensor:
        """Compute each row's mean NLL in nats per supervised token, or its mean `measure`, shape (B,)."""
        return per_sample_nll(self.loss(batch, measure=self.measure), batch.row_N, batch.supervised_B)

    def _diverged(self, step: OptimizerStep, batch_idx: int, gradient_norm: float) -> UserError:
        """Create the error for a non-finite step. All ranks call this before the optimizer step.

        The rows of the batch are fed again, to find those whose own NLL is not finite.
        """
        trainer, recipe = self.trainer, self.spec.recipe
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows_R: Rows = data.order(trainer.current_epoch)[batch_idx * data.batch_size :][: data.batch_size]
        not_finite_R = torch.zeros(len(rows_R))
        with torch.no_grad():
            for batch in step.micro_batches:
                finite_B = self.validation_step(batch, 0).isfinite().cpu()
                not_finite_R[torch.isin(torch.from_numpy(rows_R), batch.index_B[~finite_B])] = 1
        count_R: Any = trainer.strategy.reduce(not_finite_R.to(trainer.strategy.root_device), reduce_op="sum")
        culprits = rows_R[count_R.cpu().numpy() > 0]
        named = f" (not finite on their own: {_listed(culprits)})" if 0 < len(culprits) < len(rows_R) else ""
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        group = "model" if self.role == "target" else self.role
        error_type = UserError if is_main_process() else ReportedByMainProcess
        return error_type(
            f"{group}.recipe.learning_rate",
            f"{recipe.learning_rate:g}",
            f"NLL {self.step_nll:g} and gradient norm {gradient_norm:g} in step {trainer.global_step + 1} of training "
            f"the {self.role} (epoch {trainer.current_epoch + 1}, learning rate {rate:g}), rows {_listed(rows_R)}"
            f"{named}. Weights were not updated, and the last checkpoint remains",
            "lower the learning rate, or remove rows",
        )


def learning_rate_factor(recipe: Recipe, total_steps: int, step: int) -> float:
    """Compute the learning rate of an optimizer step, counted from 0, as a fraction of `recipe.learning_rate`.

    Same as the schedules in transformers, which take seconds to import if PEFT is installed.
    """
    warmup = round(recipe.warmup * total_steps)
    if step < warmup:
        return step / warmup
    if recipe.schedule == "constant":
        return 1.0
    decay = max(total_steps - warmup, 1)
    if recipe.schedule == "linear":
        return (total_steps - step) / decay
    return (1 + math.cos(math.pi * ((step - warmup) / decay))) / 2


def _listed(rows: Rows) -> str:
    return ", ".join(map(str, sorted(rows.tolist())))
