"""The text of a row and the supervised parts of it, for every template."""

import pytest

from lpsel.data.column_forms import Example, Turn
from lpsel.data.templates import render, render_prompt, template_hash
from lpsel.errors import UserError

from .conftest import CHATML

SYSTEM, ASK, ANSWER, MORE, LAST = (
    Turn("system", "Be brief."),
    Turn("user", "Add 2 and 3."),
    Turn("assistant", "5"),
    Turn("user", "And 1?"),
    Turn("assistant", "6."),
)
SHORT = Example((ASK, ANSWER))
LONG = Example((SYSTEM, ASK, ANSWER, MORE, LAST))
WITH_INPUT = Example((Turn("user", "Add."), ANSWER), "2, 3")


def supervised(rendered):
    return [rendered.text[start:end] for start, end in rendered.supervised]


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer(chat_template=CHATML)


# --- alpaca


def test_alpaca_is_the_stanford_prompt_followed_by_the_answer(tokenizer):
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd 2 and 3.\n\n### Response:"
    )
    rendered = render(SHORT, "alpaca", tokenizer)
    assert rendered == (prompt + "5", [(len(prompt), len(prompt) + 1)], True, True, None, False)
    assert render_prompt(SHORT, "alpaca", tokenizer) == (prompt, [], False, True, None, False)


def test_alpaca_with_input_has_its_own_preamble(tokenizer):
    prompt = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n2, 3"
        "\n\n### Response:"
    )
    assert render(WITH_INPUT, "alpaca", tokenizer).text == prompt + "5"
    assert render_prompt(WITH_INPUT, "alpaca", tokenizer).text == prompt


def test_alpaca_repeats_its_sections_and_ends_every_answer(tokenizer):
    preamble = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    before = (
        f"Be brief.\n\n{preamble}\n\n### Instruction:\nAdd 2 and 3.\n\n### Response:5</s>"
        "\n\n### Instruction:\nAnd 1?\n\n### Response:"
    )
    rendered = render(LONG, "alpaca", tokenizer)
    assert rendered.text == before + "6."
    assert supervised(rendered) == ["5</s>", "6."]
    assert rendered.append_eos
    assert render_prompt(LONG, "alpaca", tokenizer).text == before


def test_a_final_user_turn_is_not_supervised(tokenizer):
    rendered = render(Example((ASK, ANSWER, MORE)), "alpaca", tokenizer)
    assert supervised(rendered) == ["5</s>"]
    assert not rendered.append_eos
    assert supervised(render(Example((ASK,)), "alpaca", tokenizer)) == []


# --- plain


def test_plain_adds_nothing(tokenizer):
    rendered = render(Example((Turn("user", "2+3="), ANSWER)), "plain", tokenizer)
    assert rendered == ("2+3=5", [(4, 5)], True, True, None, False)
    assert render_prompt(Example((Turn("user", "2+3="), ANSWER)), "plain", tokenizer).text == "2+3="
    assert render(WITH_INPUT, "plain", tokenizer).text == "Add.\n\n2, 35"


# --- chat


def test_chat_supervises_every_answer_and_the_token_that_ends_it(tokenizer):
    rendered = render(LONG, "chat", tokenizer)
    assert rendered.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAdd 2 and 3.<|im_end|>\n"
        "<|im_start|>assistant\n5<|im_end|>\n<|im_start|>user\nAnd 1?<|im_end|>\n<|im_start|>assistant\n6.<|im_end|>\n"
    )
    assert supervised(rendered) == ["5<|im_end|>", "6.<|im_end|>"]
    assert not rendered.append_eos
    assert not rendered.add_special_tokens


def test_chat_prompt_is_the_text_before_the_last_answer(tokenizer):
    rendered, prompt = render(LONG, "chat", tokenizer), render_prompt(LONG, "chat", tokenizer)
    assert prompt.text == rendered.text[: rendered.supervised[-1][0]]
    assert prompt.supervised == []


def test_chat_appends_alpacas_input_to_the_user_turn(tokenizer):
    assert "user\nAdd.\n\n2, 3<|im_end|>" in render(WITH_INPUT, "chat", tokenizer).text


def test_an_answer_that_repeats_the_question_or_the_markup_is_found(tokenizer):
    for content in ("Add 2 and 3.", "assistant\n", "<|im_end|>\n<|im_start|>assistant\n", "\n", ""):
        rendered = render(Example((ASK, Turn("assistant", content))), "chat", tokenizer)
        assert supervised(rendered) == [content + "<|im_end|>"]


TRIMMING = (  # as Gemma and Llama 3: another name for the role, contents stripped, white space before the end token
    "{{ '<s>' }}{% for m in messages %}[{{ 'model' if m['role'] == 'assistant' else m['role'] }}]"
    "{{ m['content'] | trim }} {{ '</s>' }}{% endfor %}"
)
THINKING = (  # as Qwen3: thoughts are cut from all answers but the last, which always has a place for them
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% if loop.last %}<think>\n{{ parts[0].split('<think>')[-1].strip() if parts|length > 1 else '' }}\n</think>\n\n"
    "{% endif %}{{ parts[-1].strip() }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)


def test_a_template_that_trims(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=TRIMMING)
    rendered = render(Example((ASK, Turn("assistant", "\n 5 "))), "chat", tokenizer)
    assert rendered.text == "<s>[user]Add 2 and 3. </s>[model]5 </s>"
    assert supervised(rendered) == ["5 </s>"]


def test_a_template_that_cuts_thoughts_from_history(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=THINKING)
    thought, later = Turn("assistant", "<think>2+3</think>5"), Turn("assistant", "<think>5+1</think>6.")
    assert supervised(render(Example((ASK, thought, MORE, LAST)), "chat", tokenizer)) == ["5<|im_end|>", "6.<|im_end|>"]
    with_thought = supervised(render(Example((ASK, thought, MORE, later)), "chat", tokenizer))
    assert with_thought == ["5<|im_end|>", "5+1\n</think>\n\n6.<|im_end|>"]


@pytest.mark.parametrize("answer", ["<think>\n2+3\n</think>\n\n5", "2+3\n</think>\n\n5"])
def test_thoughts_in_an_answer_are_counted_if_the_template_drops_them(make_tokenizer, answer):
    like_deepseek_r1 = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}</s>{% endfor %}"
    example = Example((ASK, Turn("assistant", answer)))
    assert render(example, "chat", make_tokenizer(chat_template=like_deepseek_r1)).text_omitted
    assert not render(example, "chat", make_tokenizer(chat_template=CHATML)).text_omitted
    assert not render(example, "alpaca", make_tokenizer()).text_omitted


def test_a_template_that_leaves_turns_out(make_tokenizer):
    last_only = "{{ messages[-2]['content'] }}:{{ messages[-1]['content'] }}"
    rendered = render(LONG, "chat", make_tokenizer(chat_template=last_only))
    assert rendered.text == "And 1?:6."
    assert supervised(rendered) == ["6."]


@pytest.mark.parametrize(
    ("format", "date"), [("%d %b %Y", "26 Jul 2024"), ("%d %B %Y", "26 July 2024"), ("%Y-%m-%d", "2024-07-26")]
)
def test_a_template_that_writes_the_date_writes_the_same_every_day(make_tokenizer, format, date):
    dated = f"{{%- if strftime_now is defined %}}{{{{ strftime_now('{format}') }}}}{{%- endif %}}\n" + CHATML
    rendered = render(SHORT, "chat", make_tokenizer(chat_template=dated))
    assert rendered.text == date + render(SHORT, "chat", make_tokenizer(chat_template=CHATML)).text
    assert supervised(rendered) == ["5<|im_end|>"]


def test_a_tokenizer_without_chat_template_is_rejected(make_tokenizer):
    with pytest.raises(UserError) as caught:
        render(SHORT, "chat", make_tokenizer())
    assert (caught.value.name, caught.value.value) == ("template", "chat")
    assert "tokenizer of hand-made has no chat template" in caught.value.problem


def test_a_conversation_that_the_template_rejects_is_reported(make_tokenizer):
    rejecting = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        UserError, match=r"of hand-made: rejects .* system, user, .*: System role not supported\. "
    ) as caught:
        render(LONG, "chat", make_tokenizer(chat_template=rejecting))
    assert caught.value.hint.startswith("set dataset.system=merge")
    with pytest.raises(UserError, match="a conversation of user, assistant") as caught:
        render(SHORT, "chat", make_tokenizer(chat_template=rejecting))
    assert "system" not in caught.value.hint


# --- identity


def test_template_hash_is_of_the_text_of_the_template(make_tokenizer, tokenizer):
    assert template_hash("chat", tokenizer) == template_hash("chat", make_tokenizer(chat_template=CHATML))
    assert template_hash("chat", tokenizer) != template_hash("chat", make_tokenizer(chat_template=TRIMMING))
    assert template_hash("alpaca", tokenizer) == template_hash("alpaca", make_tokenizer())
    assert len({template_hash(name, tokenizer) for name in ("alpaca", "chat", "plain")}) == 3
