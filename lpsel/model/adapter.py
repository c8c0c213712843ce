"""LoRA and QLoRA: train low-rank matrices next to the linear layers and freeze the model's own weights."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lpsel.errors import UserError, check_choice, check_flag, check_int, check_number, check_package
from lpsel.model.load import load_config, load_model
from lpsel.model.spec import ModelSpec
from lpsel.storage import folder_atomically, open_as

ALL_LINEAR = "all-linear"
ADAPTER = "adapter"


def no_adapter() -> None:
    """Target of adapter=none: train all weights."""


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter: W x + alpha / rank * B A x instead of W x, with only A and B trained (Hu et al. 2021, 4.1).

    It has no dropout, because the loss of a batch must not depend on how the batch is split into packs.
    """

    rank: int = 16
    alpha: float = 32.0
    target_modules: str | list[str] = ALL_LINEAR  # every linear layer of the decoder, or a list of names such as q_proj
    quantization: str | None = None  # or nf4: 4-bit weights with quantized scales (Dettmers et al. 2023, 3)
    merge: bool = True  # also save the full model with the adapter merged into its weights

    def __post_init__(self) -> None:
        check_int("adapter.rank", self.rank, 1)
        check_number("adapter.alpha", self.alpha, above=0)
        names = self.target_modules
        listed = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        if names != ALL_LINEAR and not listed:
            problem = f"must be {ALL_LINEAR} or a list of layer names, such as [q_proj,v_proj]"
            raise UserError("adapter.target_modules", names, problem)
        if self.quantization is not None:
            check_choice("adapter.quantization", self.quantization, ["nf4"], "set it to null for no quantization")
        check_flag("adapter.merge", self.merge)

    @property
    def method(self) -> str:
        return "lora" if self.quantization is None else "qlora"

    def check(self, strategy: Any) -> None:
        """Check that the packages are installed and that the trainer's strategy (a name or settings) does not shard."""
        from lpsel.model.fsdp import shards

        extra = "lora" if self.quantization is None else "quantized"
        check_package("peft", extra, "adapter", self.method)
        if self.quantization is not None:
            check_package("bitsandbytes", extra, "adapter", self.method)
        if shards(strategy):
            hint = "set trainer=ddp, or adapter=none"
            raise UserError("adapter", self.method, "does not support trainer=fsdp (sharded weights)", hint)

    def load(self, spec: ModelSpec, path: str, precision: str, device: Any) -> "AdaptedModel":
        """Load the model with a new adapter, in evaluation mode. B is 0, so that outputs do not change at first.

        The model's own weights are float32 with precision 32-true and bfloat16 otherwise; the adapter is float32 except
        with bf16-true. A is initialized from the recipe's seed. 4-bit weights are loaded on `device`, others on the
        CPU.

        Raises:
            UserError: the model cannot be loaded, is already quantized, or lacks a layer in `target_modules`.
        """
        import peft
        import torch

        dtype = torch.float32 if precision == "32-true" else torch.bfloat16
        if self.quantization is None:
            model = load_model(spec, path, dtype)
        else:
            model = _load_in_4_bits(spec, path, dtype, device)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number works
            lora_dropout=0.0,
            target_modules=list(self.layers(model, spec)),
            task_type=peft.TaskType.CAUSAL_LM,
            revision=spec.revision,
        )
        with torch.random.fork_rng(devices=[]), _ignore_peft_warnings():
            torch.manual_seed(spec.recipe.seed)
            wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=precision != "bf16-true").eval()
        return AdaptedModel(self, spec, path, precision, wrapped)

    def layers(self, model: Any, spec: ModelSpec) -> dict[str, tuple[int, int]]:
        """Return the full name and the (inputs, outputs) of each linear layer that gets an adapter."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        decoder, head = model.get_decoder(), model.get_output_embeddings()
        inside = set(decoder.modules()) - {head}
        sizes = {}
        for name, module in model.named_modules():
            if module in inside and isinstance(module, nn.Linear):
                sizes[name] = (module.in_features, module.out_features)
            elif module in inside and isinstance(module, Conv1D):  # GPT-2
                sizes[name] = (module.nx, module.nf)
        known = sorted({name.rsplit(".", 1)[-1] for name in sizes})
        if not known:
            raise UserError("adapter", self.method, f"{spec.name} has no linear layer to adapt", "set adapter=none")
        if isinstance(self.target_modules, str):
            return sizes
        for layer in self.target_modules:
            if layer not in known:
                problem = f"{spec.name} has no linear layer of this name"
                raise UserError("adapter.target_modules", layer, problem, f"choose from {', '.join(known)}")
        return {name: size for name, size in sizes.items() if name.rsplit(".", 1)[-1] in self.target_modules}


@dataclass(frozen=True)
class AdaptedModel:
    """A model with an adapter: `wrapped` is the PEFT model around the transformers model loaded from `path`."""

    adapter: Adapter
    spec: ModelSpec
    path: str
    precision: str
    wrapped: Any

    @property
    def model(self) -> Any:
        """The transformers model, with the adapter inside its layers."""
        return self.wrapped.get_base_model()

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.wrapped.parameters() if p.requires_grad)

    def save(self, tokenizer: Any, run_dir: Path, model: str) -> None:
        """Write RUN/adapter in PEFT's format and, with `merge`, the full model with its tokenizer to RUN/`model`.

        Merging loads the unquantized model a second time, in host memory: 4 bytes per weight, 2 with bf16-true.
        """
        import peft
        import torch

        with folder_atomically(run_dir / ADAPTER) as folder:
            # No embedding is trained. Without this argument, PEFT would query the Hub to find out.
            self.wrapped.save_pretrained(folder, save_embedding_layers=False)
            open_as(folder, peft.utils.CONFIG_NAME)
        shutil.rmtree(run_dir / model, ignore_errors=True)  # left by an earlier run in the same folder
        if not self.adapter.merge:
            return
        base = load_model(self.spec, self.path, torch.bfloat16 if self.precision == "bf16-true" else torch.float32)
        with _ignore_peft_warnings():
            adapted = peft.PeftModel.from_pretrained(base, str(run_dir / ADAPTER), torch_device="cpu")
            merged = adapted.merge_and_unload()
        with folder_atomically(run_dir / model) as folder:
            merged.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            open_as(folder, "config.json")

    def describe(self, run_dir: Path) -> dict[str, Any]:
        sizes = {"trainable_parameters": self.trainable_parameters, "folder": str(run_dir / ADAPTER)}
        return {"method": self.adapter.method, **asdict(self.adapter), **sizes}


def _load_in_4_bits(spec: ModelSpec, path: str, dtype: Any, device: Any) -> Any:
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    if getattr(load_config(spec, path), "quantization_config", None) is not None:
        raise UserError("adapter", "qlora", f"{path} is already quantized", "use the model's original weights")
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = load_model(spec, path, dtype, quantization_config=four_bits, device_map={"": device})
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In evaluation mode, bitsandbytes would repack the weights for a bfloat16 CPU kernel that has no backward
            # pass and silently stops gradients.
            module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def _ignore_peft_warnings() -> Iterator[None]:
    """Suppress warnings about settings that PEFT corrects itself and about how PEFT uses transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield
