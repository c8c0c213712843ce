"""How an answer is drawn from a model, and what was drawn."""

from dataclasses import dataclass

from lpsel.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: an answer is cut here.
        temperature: 0 takes the most likely token every time; above it, logits are divided by it and sampled.
        top_p: only the most likely tokens that together have this probability are sampled (nucleus sampling).
        seed: of the samples. A prompt's answer depends on it and on the prompt, not on the other prompts.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        whole = isinstance(self.max_new_tokens, int) and not isinstance(self.max_new_tokens, bool)
        _require(whole and self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "must be at least 1 token")
        _require(
            _is_number(self.temperature) and 0 <= self.temperature < float("inf"),
            "temperature",
            self.temperature,
            "must be 0 (the most likely token) or more",
        )
        _require(
            _is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "must be above 0 and at most 1 (all)"
        )
        _require(
            isinstance(self.seed, int) and 0 <= self.seed < 2**32, "seed", self.seed, "must be from 0 to 4294967295"
        )

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    def settings(self) -> dict[str, float]:
        """What an answer depends on: neither seed nor top_p where nothing is sampled."""
        drawn = {} if self.greedy else {"top_p": float(self.top_p), "seed": self.seed}
        return {"max_new_tokens": self.max_new_tokens, "temperature": float(self.temperature), **drawn}


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote after one prompt.

    Attributes:
        text: without the token that ended it and without special tokens.
        tokens: generated, the one that ended it counted; None where an endpoint does not say.
        stopped: it ended by itself, not at the limit of new tokens.
        prompt_tokens: fed; None where an endpoint does not say.
        prompt_cut: tokens of the prompt left out, from its beginning, since the model's context has no room for them.
    """

    text: str
    tokens: int | None
    stopped: bool
    prompt_tokens: int | None
    prompt_cut: int = 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(ok: bool, name: str, value: object, what: str) -> None:
    if not ok:
        raise UserError(f"evaluator.{name}={value}: {what}.")
