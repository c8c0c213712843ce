"""How answers are drawn from a model, and what was drawn."""

from dataclasses import dataclass

from lpsel.errors import UserError, check_int, check_number


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 takes the most likely token; otherwise logits are divided by it and sampled
    top_p: float = 1.0  # sample only from the most likely tokens that together have this probability (nucleus sampling)
    seed: int = 42  # the random numbers of an answer depend on it and on the prompt, not on other prompts

    def __post_init__(self) -> None:
        check_int("evaluator.max_new_tokens", self.max_new_tokens, 1)
        check_number("evaluator.temperature", self.temperature, minimum=0, hint="set 0 for the most likely token")
        check_number("evaluator.top_p", self.top_p, above=0)
        if self.top_p > 1:
            raise UserError("evaluator.top_p", self.top_p, "must be at most 1", "set 1 to sample from all tokens")
        check_int("evaluator.seed", self.seed, 0)
        if self.seed >= 2**32:
            raise UserError("evaluator.seed", self.seed, f"must be less than {2**32}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def settings(self) -> dict[str, float]:
        """What an answer depends on: neither seed nor top_p for greedy answers."""
        drawn = {} if self.greedy else {"top_p": float(self.top_p), "seed": self.seed}
        return {"max_new_tokens": self.max_new_tokens, "temperature": float(self.temperature), **drawn}


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer of a model to one prompt; counts of tokens are None where an endpoint does not report them."""

    text: str  # without the token that ended it and without special tokens
    tokens: int | None  # generated, including the one that ended it
    stopped: bool  # by the model, not by max_new_tokens
    prompt_tokens: int | None
    prompt_cut: int = 0  # tokens removed from the beginning of the prompt because the context has no room for them
