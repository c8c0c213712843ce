"""One thing to ask a model."""

from dataclasses import dataclass

from lpsel.data.dataset import Example


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of an evaluation.

    Attributes:
        id: the only one of its kind among all prompts of an evaluation.
        prompt_set: the name of the set it is from.
        example: the conversation up to the answer.
        category: that its set gives it.
        reference: an answer that its set gives.
    """

    id: str
    prompt_set: str
    example: Example
    category: str | None = None
    reference: str | None = None

    @property
    def text(self) -> str:
        """What a judge or a person is shown: the instruction, and the input below it; all turns of a conversation."""
        parts = [turn.content for turn in self.example.turns]
        return "\n\n".join([*parts, self.example.input] if self.example.input else parts)
