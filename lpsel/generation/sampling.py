"""Sampling settings, and generated answers."""

from dataclasses import dataclass

from lpsel.errors import UserError, check_int, check_number


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling answers."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 for greedy decoding; otherwise logits are divided by it before sampling
    top_p: float = 1.0  # sample only from the most likely tokens that together have this probability (nucleus sampling)
    seed: int = 42  # random numbers depend only on the seed and the prompt, not on other prompts

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
        """Return the settings that answers depend on; greedy answers do not depend on seed and top_p."""
        drawn = {} if self.greedy else {"top_p": float(self.top_p), "seed": self.seed}
        return {"max_new_tokens": self.max_new_tokens, "temperature": float(self.temperature), **drawn}


@dataclass(frozen=True, slots=True)
class Generation:
    """A model's answer to a prompt; token counts are None if an endpoint does not report them."""

    text: str  # without the end token and other special tokens
    tokens: int | None  # number of generated tokens, including the end token
    stopped: bool  # whether the model ended the answer, rather than max_new_tokens
    prompt_tokens: int | None
    prompt_cut: int = 0  # number of tokens cut from the beginning of the prompt to fit the context
