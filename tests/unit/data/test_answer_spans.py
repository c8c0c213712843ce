"""Where answers, calls and end tokens are in chat templates of unusual structure."""

import pytest

from lpsel.data.column_forms import Example, Turn
from lpsel.data.control_tokens import control_tokens
from lpsel.data.dataset import Row
from lpsel.data.tokens import _encoded
from tests.fixtures.chat_templates import chat_tokenizer

QUESTION = Turn("user", "Where?")
# Nothing ends a turn.
NO_END = (
    "{{ tools }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls %}{{ '<tool_call>' + call.function.name + '</tool_call>' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% endif %}"
)


def with_template(template):
    tokenizer = chat_tokenizer("bytes", "chatml", bos=False)
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", name_or_path="tiny"
    )
    tokenizer.chat_template = template
    return tokenizer


def encoded(turns, tokenizer, template="chat", tools=()):
    [[row]] = list(_encoded(None, [Row(0, {}, Example(tuple(turns), tools=tools))], tokenizer, template, 1 << 20))
    return row


def answers(template, *turns, tools=()):
    """The text of each supervised span."""
    tokenizer = with_template(template)
    row = encoded(turns, tokenizer, tools=tools)
    return [tokenizer.decode(row.ids[first:last]) for first, last in row.spans]


def said(content, **fields):
    return Turn("assistant", content, fields=fields)


# --- control tokens at the end of a text


def test_a_control_token_at_the_end_of_a_text_ends_with_the_text():
    controls = control_tokens(with_template(NO_END))
    assert max(map(len, controls.texts)) > len("</s>"), "a longer one is looked for first"
    assert controls.find("abc</s>") == [(3, 7)]
    assert controls.end("abc</s>", 3) == 7


def test_a_marked_answer_ends_with_its_end_token():
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '</s>' }}"
        "{% endgeneration %}{% else %}{{ '[INST]' + m.content + '[/INST]' }}{% endif %}{% endfor %}"
    )
    assert answers(template, QUESTION, said("In Rome."), QUESTION, said("There."), tools=()) == [
        "In Rome.</s>",
        "There.</s>",
    ]


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_eos_before_an_empty_last_turn_is_a_token(template):
    tokenizer = with_template(NO_END)
    row = encoded([QUESTION, said("In Rome."), Turn("user", "")], tokenizer, template)
    assert row.ids.count(tokenizer.eos_token_id) == 1
