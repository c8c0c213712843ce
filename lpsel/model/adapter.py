"""LoRA and QLoRA: small matrices beside the linear layers train, the model's own weights stay as they are."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lpsel.errors import UserError
from lpsel.model.spec import ModelSpec
from lpsel.training.checks import need, shards

ALL_LINEAR = "all-linear"
QUANTIZATIONS = ("nf4",)
ADAPTER = "adapter"


def no_adapter() -> None:
    """What adapter=none stands for: all weights train."""


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter: W x + alpha / rank x B A x in place of W x, where A and B train alone (Hu et al. 2021, 4.1).

    There is no dropout on it, as nowhere here: the loss of a batch must not depend on how it is cut up.

    Attributes:
        rank: rows of A and columns of B.
        alpha: scale of the adapter, before it is divided by the rank.
        target_modules: all-linear, every linear layer of the decoder but the output head, or a list of layer names
            such as q_proj.
        quantization: null, or nf4: the linear layers' own weights in 4 bits, their scales quantised too (Dettmers et
            al. 2023, section 3).
        merge: whether the full model with the adapter in its weights is written beside the adapter.
    """

    rank: int = 16
    alpha: float = 32.0
    target_modules: str | list[str] = ALL_LINEAR
    quantization: str | None = None
    merge: bool = True

    def __post_init__(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        if not whole or self.rank < 1:
            raise UserError(f"adapter.rank={self.rank}: must be a whole number of at least 1.")
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or self.alpha <= 0:
            raise UserError(f"adapter.alpha={self.alpha}: must be a number above 0.")
        names = self.target_modules
        listed = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        if names != ALL_LINEAR and not listed:
            raise UserError(
                f"adapter.target_modules={names}: must be {ALL_LINEAR} or a list of layer names, say [q_proj,v_proj]."
            )
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise UserError(
                f"adapter.quantization={self.quantization}: must be null or one of {', '.join(QUANTIZATIONS)}."
            )
        if not isinstance(self.merge, bool):
            raise UserError(f"adapter.merge={self.merge}: must be true or false.")

    @property
    def method(self) -> str:
        return "lora" if self.quantization is None else "qlora"

    def check(self, trainer: Any) -> None:
        """Find what is missing for this adapter before a model is loaded.

        Args:
            trainer: the trainer's configuration.

        Raises:
            UserError: a package that is not installed, or a strategy that shards the weights.
        """
        need("peft", "lora" if self.quantization is None else "quantized", f"adapter={self.method}")
        if self.quantization is not None:
            need("bitsandbytes", "quantized", f"adapter={self.method}")
        if shards(trainer):
            raise UserError(
                f"adapter={self.method} trainer=fsdp: an adapter trains on whole weights, not on sharded ones; say "
                "trainer=ddp, or adapter=none."
            )

    def load(self, spec: ModelSpec, path: str, precision: str, device: Any) -> "Adapted":
        """The model with a new adapter in it, in evaluation mode. B is 0, so that it still computes what it did.

        The model's own weights are in float32 with precision 32-true, else in bfloat16; the adapter is in float32
        except with bf16-true.

        Args:
            spec: the model; its recipe's seed draws A.
            path: folder or Hub id to load it from.
            precision: Lightning's name of it.
            device: where 4-bit weights are made; others are loaded on the CPU, for the strategy to move.

        Raises:
            UserError: the model cannot be loaded, is quantised already, or has not the layers that were named.
        """
        import peft
        import torch

        from lpsel.model.load import load_model

        dtype = torch.float32 if precision == "32-true" else torch.bfloat16
        if self.quantization is None:
            model = load_model(spec, path, dtype)
        else:
            model = _load_in_4_bits(spec, path, dtype, device)
        layers = self.layers(model, spec)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number does
            lora_dropout=0.0,
            target_modules=list(layers),
            task_type=peft.TaskType.CAUSAL_LM,
            revision=spec.revision,
        )
        with torch.random.fork_rng(devices=[]), _quietly():
            torch.manual_seed(spec.recipe.seed)
            wrapped = peft.get_peft_model(model, config).eval()
        adapted = Adapted(self, spec, path, precision, wrapped)
        expected = sum(self.rank * (inputs + outputs) for inputs, outputs in layers.values())
        assert adapted.trainable_parameters == expected, (adapted.trainable_parameters, expected)
        return adapted

    def layers(self, model: Any, spec: ModelSpec) -> dict[str, tuple[int, int]]:
        """Full names and (inputs, outputs) of the linear layers that get an adapter."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        decoder, head = model.get_decoder(), model.get_output_embeddings()
        inside = {id(module) for module in decoder.modules()} - {id(head)}
        sizes = {}
        for name, module in model.named_modules():
            if id(module) in inside and isinstance(module, nn.Linear):
                sizes[name] = (module.in_features, module.out_features)
            elif id(module) in inside and isinstance(module, Conv1D):  # GPT-2
                sizes[name] = (module.nx, module.nf)
        known = sorted({name.rsplit(".", 1)[-1] for name in sizes})
        if not known:
            raise UserError(f"adapter={self.method}: {spec.name} has no linear layer to adapt; say adapter=none.")
        if isinstance(self.target_modules, str):
            return sizes
        for wanted in self.target_modules:
            if wanted not in known:
                raise UserError(
                    f"adapter.target_modules={wanted}: no such linear layer in {spec.name}; it has {', '.join(known)}."
                )
        return {name: size for name, size in sizes.items() if name.rsplit(".", 1)[-1] in self.target_modules}


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter in it.

    Attributes:
        adapter: its settings.
        spec, path: the model it was put on.
        precision: it is trained in.
        wrapped: the peft model around the transformers model.
    """

    adapter: Adapter
    spec: ModelSpec
    path: str
    precision: str
    wrapped: Any

    @property
    def model(self) -> Any:
        """The transformers model with the adapter in its layers."""
        return self.wrapped.get_base_model()

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.wrapped.parameters() if p.requires_grad)

    def save(self, tokenizer: Any, run_dir: Path, model: str) -> None:
        """Write RUN/adapter as peft does and, where it is to be merged, the full model with its tokenizer beside it.

        Merging holds the model a second time in the host's memory: 4 bytes a weight, 2 with bf16-true.
        """
        from lpsel.storage import folder_atomically

        with folder_atomically(run_dir / ADAPTER) as folder:
            # None of the embeddings is trained; asked to find out, peft would ask the Hub.
            self.wrapped.save_pretrained(folder, save_embedding_layers=False)
        shutil.rmtree(run_dir / model, ignore_errors=True)  # of an earlier run in the same folder
        if self.adapter.merge:
            with folder_atomically(run_dir / model) as folder:
                self.merged(run_dir / ADAPTER).save_pretrained(folder)
                tokenizer.save_pretrained(folder)

    def merged(self, saved: Path) -> Any:
        """The model as it is on disk, not quantised, with a saved adapter added to its weights; on the CPU."""
        import peft
        import torch

        from lpsel.model.load import load_model

        base = load_model(self.spec, self.path, torch.bfloat16 if self.precision == "bf16-true" else torch.float32)
        with _quietly():
            return peft.PeftModel.from_pretrained(base, str(saved), torch_device="cpu").merge_and_unload()

    def describe(self, run_dir: Path) -> dict[str, Any]:
        """What result.json says of the adapter."""
        return {
            "method": self.adapter.method,
            **asdict(self.adapter),
            "trainable_parameters": self.trainable_parameters,
            "folder": str(run_dir / ADAPTER),
        }


def _load_in_4_bits(spec: ModelSpec, path: str, dtype: Any, device: Any) -> Any:
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    from lpsel.model.load import load_config, load_model

    if getattr(load_config(spec, path), "quantization_config", None) is not None:
        raise UserError(f"adapter=qlora: {path} is quantised already; give the model's own weights.")
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = load_model(spec, path, dtype, quantization_config=four_bits, device_map={"": device})
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In evaluation mode bitsandbytes would pack weights anew for a CPU's bfloat16 kernel, which has no backward
            # pass: gradients would end there without a word.
            module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def _quietly() -> Iterator[None]:
    """Without peft's warnings of what it mends itself (GPT-2's layers) and of what it asks transformers for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield
