import pytest

from lpsel.data.column_forms import Example, Turn
from lpsel.generation.prompts import Prompt
from lpsel.model.spec import ModelSpec


@pytest.fixture
def questions():
    """`count` prompts of different lengths."""

    def made(count):
        texts = [f"Name {'a very ' * (i % 5)}small number, not {i}." for i in range(count)]
        return [Prompt(str(i), "own", Example((Turn("user", text),))) for i, text in enumerate(texts)]

    return made


@pytest.fixture
def toy_spec(toy_model):
    return ModelSpec("toy", str(toy_model), template="plain", max_length=128)
