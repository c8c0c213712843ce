"""Save a trained model as a Hugging Face folder."""

from pathlib import Path
from typing import Any

from lpsel.model.fsdp import ShardedStrategy, reshard
from lpsel.storage import folder_atomically, open_as


def save_model(trainer: Any, module: Any, tokenizer: Any, folder: Path) -> None:
    """Atomically write a folder that AutoModelForCausalLM and AutoTokenizer can load.

    All ranks must call this, because sharded weights are gathered in the main process's host memory.
    """
    model = module.language_model
    reshard(module.loss)
    weights = _gather(model) if isinstance(trainer.strategy, ShardedStrategy) else None
    if trainer.is_global_zero and module.adapted is not None:  # adapted models are never sharded
        module.adapted.save(tokenizer, folder.parent, folder.name)
    elif trainer.is_global_zero:
        with folder_atomically(folder) as temporary:
            model.save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)
            open_as(temporary, "config.json")
    trainer.strategy.barrier("model saved")


def _gather(model: Any) -> dict[str, Any]:
    """Gather a sharded model's full state dict on rank 0's CPU, tied weights as one tensor; empty on other ranks."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    first_names: dict[int, str] = {}  # of tied parameters, which have several names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first_name = first_names.setdefault(id(parameter), name)
        if name in weights:
            weights[name] = weights[first_name]
    return weights
