"""What runs a model on this machine: transformers, or vLLM where it is installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lpsel.console import track
from lpsel.errors import UserError
from lpsel.generation.sampling import Sampling
from lpsel.model.device import free_memory
from lpsel.model.load import load_config, load_model
from lpsel.model.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from lpsel.data.templates import Rendered
    from lpsel.generation.generate import Keep


class Engine(Protocol):
    """Continues prompts with a model that it loads and frees again.

    Attributes:
        name: kept with the answers: engines round differently.
    """

    name: ClassVar[str]

    def check(self) -> None:
        """Whether it can run here.

        Raises:
            UserError: it cannot.
        """

    def generate(
        self,
        spec: ModelSpec,
        path: str,
        tokenizer: Any,
        prompts: "Sequence[Rendered]",
        sampling: Sampling,
        keep: "Keep",
        *,
        device: "torch.device",
        dtype: "torch.dtype",
        batch_tokens: int,
    ) -> None:
        """Answer all prompts, and hand what is done to `keep`, by the prompts' places, while others are still open."""


@dataclass(frozen=True)
class Transformers:
    """transformers' own generate(), on the device of the run."""

    name: ClassVar[str] = "transformers"

    def check(self) -> None:
        """It is always there."""

    def generate(
        self,
        spec: ModelSpec,
        path: str,
        tokenizer: Any,
        prompts: "Sequence[Rendered]",
        sampling: Sampling,
        keep: "Keep",
        *,
        device: "torch.device",
        dtype: "torch.dtype",
        batch_tokens: int,
    ) -> None:
        from lpsel.generation.generate import generate

        model = load_model(spec, path, dtype).to(device)
        title = f"Answers, {spec.name}"
        generate(model, tokenizer, prompts, sampling, batch_tokens=batch_tokens, title=title, keep=keep)
        del model
        free_memory()


@dataclass(frozen=True)
class Vllm:
    """vLLM's offline engine, which batches continuously and takes the GPUs of the machine for itself.

    A sample's seed is the request's, so that it does not depend on the batch, as far as vLLM keeps to that.

    Attributes:
        tensor_parallel_size: GPUs that share the model.
        gpu_memory_utilization: share of a GPU's memory that it takes.
        prompts_at_once: handed over together; answers are on disk after each such share.
    """

    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    prompts_at_once: int = 256

    name: ClassVar[str] = "vllm"

    def check(self) -> None:
        if find_spec("vllm") is None:
            raise UserError(
                "engine=vllm: vLLM is not installed; say engine=transformers, or pip install vllm in an environment "
                "with a GPU."
            )

    def generate(
        self,
        spec: ModelSpec,
        path: str,
        tokenizer: Any,
        prompts: "Sequence[Rendered]",
        sampling: Sampling,
        keep: "Keep",
        *,
        device: "torch.device",
        dtype: "torch.dtype",
        batch_tokens: int,
    ) -> None:
        from vllm import LLM, SamplingParams

        from lpsel.generation.generate import fit_prompts, generation_of, stop_ids

        config = load_config(spec, path)
        fed, cut = fit_prompts(config, tokenizer, prompts, sampling.max_new_tokens)
        stops = stop_ids(tokenizer, config, _generation_config(spec, path))
        model = LLM(
            model=path,
            revision=spec.revision,
            tokenizer_revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
            dtype=str(dtype).removeprefix("torch."),
            tensor_parallel_size=self.tensor_parallel_size,
            gpu_memory_utilization=self.gpu_memory_utilization,
            generation_config="vllm",  # not the model's own sampling and penalties
        )
        params = SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=None if sampling.greedy else sampling.seed,
            stop_token_ids=stops,
        )
        with track(f"Answers, {spec.name}", total=len(fed), unit="rows") as advance:
            for start in range(0, len(fed), self.prompts_at_once):
                share = range(start, min(start + self.prompts_at_once, len(fed)))
                outputs = model.generate([{"prompt_token_ids": fed[i]} for i in share], params, use_tqdm=False)
                new = [list(output.outputs[0].token_ids) for output in outputs]
                keep(
                    {
                        i: generation_of(tokenizer, ids, stops, len(fed[i]), cut[i])
                        for i, ids in zip(share, new, strict=True)
                    }
                )
                advance(len(share), tokens=sum(map(len, new)))
        del model
        free_memory()


def _generation_config(spec: ModelSpec, path: str) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path, revision=spec.revision or "main")
    except OSError:  # a model need not have one
        return GenerationConfig()
