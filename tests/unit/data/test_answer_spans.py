"""Where answers, calls and end tokens are in chat templates of unusual structure."""

import pytest

from lpsel.data.column_forms import Example, Turn
from lpsel.data.control_tokens import control_tokens
from lpsel.data.dataset import Row
from lpsel.data.templates import render
from lpsel.data.tokens import _encoded
from lpsel.data.turns import turns_of
from lpsel.errors import UnusableRow
from tests.fixtures.chat_templates import chat_tokenizer

CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
QUESTION, RESULT = Turn("user", "Where?"), Turn("tool", "RESULT")
TOOLS = ({"type": "function", "function": {"name": "weather"}},)
# The end of a turn depends on the turn: of a call, of the last answer, of others. Thoughts are kept before the first
# answer only.
THREE_ENDS = (
    "{{ tools }}{% for m in messages %}{% set later = messages[loop.index:] | rejectattr('tool_calls', 'defined') "
    "| selectattr('role', 'equalto', 'assistant') | list %}"
    "{% if m.role == 'tool' %}{{ '<|im_start|>weather to=assistant' + m.content + '<|im_end|>' }}"
    "{% elif m.tool_calls %}"
    "{% if m.thinking and not later %}{{ '<|im_start|>assistant think:' + m.thinking + '<|im_end|>' }}{% endif %}"
    "{{ '<|im_start|>assistant to=' + m.tool_calls[0].function.name + '<|eot_id|>' }}"
    "{% elif m.role == 'assistant' %}"
    "{{ '<|im_start|>assistant final:' + m.content + ('</s>' if loop.last else '<|im_end|>') }}"
    "{% else %}{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
# A call, its result and the answer are one turn.
ONE_TURN = (
    "{{ tools }}{% for m in messages %}{% if m.role == 'tool' %}{{ '<tool_response>' + m.content }}"
    "{% elif m.role == 'user' %}{{ '<start_of_turn>user\n' + m.content + '<end_of_turn>\n' }}"
    "{% else %}{{ '<start_of_turn>model\n' if messages[loop.index0 - 1].role == 'user' }}"
    "{% if m.tool_calls %}{{ '<tool_call>' + m.tool_calls[0].function.name + '</tool_call>' }}"
    "{% else %}{{ m.content + '<end_of_turn>\n' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role == 'user' %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The model continues <think>, which an answer without thoughts closes at once.
OPEN_THOUGHT = (
    "{{ tools }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + m.reasoning_content + '</think>' if m.reasoning_content else '<think></think>' }}{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls %}{{ '<tool_call>' + call.function.name + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
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
    [row] = list(_encoded(None, [Row(0, {}, Example(tuple(turns), tools=tools))], tokenizer, template, 1 << 20))
    return row


def answers(template, *turns, tools=TOOLS):
    """The text of each supervised span."""
    tokenizer = with_template(template)
    row = encoded(turns, tokenizer, tools=tools)
    return [tokenizer.decode(row.ids[first:last]) for first, last in row.spans]


def called(**fields):
    return Turn("assistant", "", fields={"tool_calls": [CALL], **fields})


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


# --- calls


def test_a_call_ends_with_its_own_end_token():
    call = " to=weather<|eot_id|>"
    assert answers(THREE_ENDS, QUESTION, called(), RESULT, said("Dry.")) == [call, "Dry.</s>"]
    assert answers(THREE_ENDS, QUESTION, called(), RESULT, called(), RESULT, said("Dry.")) == [call, call, "Dry.</s>"]
    found = answers(THREE_ENDS, QUESTION, called(), RESULT, said("Dry."), QUESTION, said("Yes."))
    assert found == [call, "Dry.<|im_end|>", "Yes.</s>"]


def test_thoughts_that_depend_on_later_answers_do_not_move_a_call():
    thought = called(thinking="Hm.")
    written = " think:Hm.<|im_end|><|im_start|>assistant to=weather<|eot_id|>"
    assert answers(THREE_ENDS, QUESTION, thought, RESULT, thought) == [written, written]
    assert answers(THREE_ENDS, QUESTION, thought, RESULT, said("Dry."))[0] == " to=weather<|eot_id|>"


def test_a_result_within_the_turn_of_its_call_is_not_supervised():
    call = "<tool_call>weather</tool_call>"
    found = answers(ONE_TURN, QUESTION, called(), RESULT, called(), RESULT, said("Dry."), QUESTION, said("Yes."))
    assert found == [call, call, "Dry.<end_of_turn>", "Yes.<end_of_turn>"]


def test_thoughts_begin_in_their_own_turn_where_the_header_opens_them():
    call, answer = called(reasoning_content="Hm."), said("Dry.", reasoning_content="So.")
    assert answers(OPEN_THOUGHT, QUESTION, call, RESULT, answer) == [
        "Hm.</think><tool_call>weather</tool_call><|im_end|>",
        "So.</think>Dry.<|im_end|>",
    ]
    assert answers(OPEN_THOUGHT, QUESTION, answer, QUESTION, said("Dry.")) == [
        "So.</think>Dry.<|im_end|>",
        "Dry.<|im_end|>",
    ]


def test_calls_are_found_where_nothing_ends_a_turn():
    two = Turn("assistant", "Hm.", fields={"tool_calls": [CALL, CALL]})
    call, answer = answers(NO_END, QUESTION, two, RESULT, said("Dry."))
    assert call.removesuffix("<|start_header_id|>") == "Hm." + 2 * "<tool_call>weather</tool_call>"
    assert answer == "Dry."


def test_an_answer_in_json_does_not_shorten_a_call_that_ends_alike():
    template = OPEN_THOUGHT.replace(".function.name", ".function | tojson")
    similar = said('{"arguments": {"city": "Rome"}}</tool_call>')
    call, _ = answers(template, QUESTION, called(), RESULT, similar)
    assert call == '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call><|im_end|>'


def test_a_token_of_two_answers_is_counted_once(make_tokenizer):
    tokenizer = make_tokenizer(merges=[("b", "c")], chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    turns = [Turn("user", "a"), said("b"), said("cd")]
    assert render(Example(tuple(turns)), "chat", tokenizer).supervised == [(1, 2), (2, 4)]
    assert encoded(turns, tokenizer).spans == [(1, 2), (2, 3)], "a, bc, d"


def test_text_next_to_a_call_that_a_template_leaves_out_is_counted():
    with_text = Turn("assistant", "I look.", fields={"tool_calls": [CALL]})
    turns = (QUESTION, with_text, RESULT, said("Dry."))
    assert encoded(turns, with_template(THREE_ENDS), tools=TOOLS).text_omitted
    assert not encoded(turns, with_template(NO_END), tools=TOOLS).text_omitted


@pytest.mark.parametrize("sign", ["+", "~"], ids=["rejects an object", "writes an object in Python's notation"])
@pytest.mark.parametrize("arguments", [{"city": "Rome"}, '{"city": "Rome"}'])
def test_arguments_are_json_where_a_template_joins_them_with_text(sign, arguments):
    template = NO_END.replace("call.function.name", f"call.function.name {sign} ' ' {sign} call.function.arguments")
    call = {"id": "1", "function": {"name": "weather", "arguments": arguments}}
    calling = turns_of([{"role": "assistant", "tool_calls": [call]}], "messages")
    call, answer = answers(template, QUESTION, *calling, RESULT, said("Dry."))
    assert call.removesuffix("<|start_header_id|>") == '<tool_call>weather {"city": "Rome"}</tool_call>'
    assert answer == "Dry."
    asked = Turn("user", "Why {'city': 'Rome'}?")
    with_json = NO_END.replace("call.function.name", "call.function.name ~ call.function.arguments | tojson")
    assert answers(with_json, asked, *calling, RESULT)[0].startswith('<tool_call>weather{"city": "Rome"}</tool_call>')
    with pytest.raises(UnusableRow, match="rejects a conversation of user, assistant"):
        render(Example((QUESTION, called())), "chat", with_template(template + "{{ raise_exception('No.') }}"))
