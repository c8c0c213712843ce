"""Answers in the chat templates of well-known models: the supervised tokens are the answers and their end tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PretrainedConfig

from lpsel.data.column_forms import Example, Turn
from lpsel.data.control_tokens import control_tokens
from lpsel.data.dataset import Row
from lpsel.data.templates import render, render_prompt
from lpsel.data.tokens import _encoded
from lpsel.errors import UnusableRow, UserError
from lpsel.generation.generate import stop_ids
from tests.fixtures.chat_templates import SPECIAL, TEMPLATES, chat_tokenizer

KINDS = ["bytes", "sentencepiece", "unigram"]
# What each template does to an answer, and what it writes after one.
STRIPS = {"llama-2", "mistral-tools", "llama-3", "llama-3.2", "gemma", "gemma-3", "gemma-3-marked"}
STRIPS_LINES = {"smollm-3", "qwen-3-marked"}
END = {"llama-2": " </s>", "mistral": "</s>", "mistral-tools": "</s>"}
ROLE = {"llama": "<|eot_id|>", "gemma": "<end_of_turn>"}
BEFORE = {"qwen-3-marked": "<think>\n\n</think>\n\n"}  # marked for training in every turn


def encode(example, tokenizer, template="chat"):
    [encoded] = list(_encoded(None, [Row(0, {}, example)], tokenizer, template, 1 << 20))
    return encoded


def answers(example, tokenizer, template="chat"):
    """The decoded text of each supervised span."""
    encoded = encode(example, tokenizer, template)
    return [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]


def written(name, answer, last):
    """An answer and its end token as a template writes them."""
    end = END.get(name) or next((end for start, end in ROLE.items() if name.startswith(start)), "<|im_end|>")
    if name in STRIPS:
        answer = answer.strip()
    elif name in STRIPS_LINES or (name == "qwen-3" and last):
        answer = answer.lstrip("\n")
    return BEFORE.get(name, "") + answer + end


def chat(*contents):
    return Example(tuple(Turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents)))


def spaces(text):
    """Without the spaces that a SentencePiece tokenizer adds after control tokens and loses at the beginning."""
    return text.replace(" ", "")


CHARACTERS = ("ꙮ", "🧿", "\ue3a7\uf1c2\ue3a7", "\ue3a7\uf1c2\uf1c2\ue3a7", "\U00040000", "\U000f0003\U0010fffd")
WORDS = (
    "Hello",
    "fox",
    " ",
    "\n",
    '"',
    "(",
    "[1, 2]",
    "你好",
    "。",
    "é",
    "5",
    ".",
    "<",
    "|",
    ">",
    "</",
    "[INST]",
    "user\n",
)
PIECES = st.sampled_from([*SPECIAL, *WORDS, *CHARACTERS])
CONTENT = st.lists(PIECES, max_size=6).map("".join)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(contents=st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3), kind=st.sampled_from(KINDS[:2]))
def test_the_supervised_tokens_are_the_answers_and_their_end_tokens(name, contents, kind):
    tokenizer = chat_tokenizer(kind, name)
    example = chat(*(text for pair in contents for text in pair))
    expected = [written(name, answer, i == len(contents) - 1) for i, (_, answer) in enumerate(contents)]
    found = answers(example, tokenizer)
    if kind == "bytes":  # decoding gives every character back; the first token may have a space of the template
        assert [text.removeprefix(" ") for text in found] == [text.removeprefix(" ") for text in expected]
    else:
        assert [spaces(text) for text in found] == [spaces(text) for text in expected]


@pytest.mark.parametrize("name", ["alpaca", "plain"])
@settings(max_examples=40, deadline=None)
@given(contents=st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3))
def test_alpaca_and_plain_supervise_the_answers_and_eos(name, contents):
    tokenizer = chat_tokenizer("bytes", "chatml")
    separated = [(f"{prompt}\n", answer) for prompt, answer in contents]  # no token spans a prompt and its answer
    found = answers(chat(*(text for pair in separated for text in pair)), tokenizer, name)
    assert "".join(found) == "".join(f"{answer}</s>" for _, answer in contents)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*TEMPLATES, "alpaca", "plain"])
def test_control_tokens_in_text_stay_text(name, kind):
    tokenizer = chat_tokenizer(kind, name if name in TEMPLATES else "chatml")
    template = "chat" if name in TEMPLATES else name
    controls = {tokenizer.convert_tokens_to_ids(text) for text in SPECIAL if text != "<unk>"}

    def found(*contents):
        return [token for token in encode(chat(*contents), tokenizer, template).ids if token in controls]

    text = "a </s> b <|im_end|>\n<|im_start|>assistant <start_of_turn>model<s><|eot_id|>"
    assert found(text, text, f"{text} c", text) == found("a", "b", "c", "d")
    prompts = [render_prompt(chat(content, ""), template, tokenizer) for content in (text, "a")]
    counts = [sum(token in controls for token in prompt_tokens(tokenizer, prompt)) for prompt in prompts]
    assert counts[0] == counts[1]


def prompt_tokens(tokenizer, prompt):
    from lpsel.generation.generate import prompt_ids

    return prompt_ids(tokenizer, prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_control_tokens_has_the_same_tokens_either_way(kind):
    tokenizer = chat_tokenizer(kind, "chatml")
    for name in ("chat", "alpaca", "plain"):
        rendered = render(chat(" Hello, fox", "你好 [1, 2]", "é\n", " ok"), name, tokenizer)
        assert rendered.controls is None
        controls = control_tokens(tokenizer)
        separate = controls.encode(rendered._replace(controls=controls.find(rendered.text)))
        direct = tokenizer(rendered.text, add_special_tokens=rendered.add_special_tokens)["input_ids"]
        assert separate.ids == direct


# --- the first token of an answer


@pytest.mark.parametrize("name", ["llama-2", "mistral", "mistral-tools"])
@pytest.mark.parametrize("answer", ["quick", '"quick" fox', "(5", "[1]", "你好", "ꙮ", "🧿 ok"])
def test_the_first_word_is_supervised_after_a_space_of_the_template(name, answer):
    for kind in KINDS[:2]:
        tokenizer = chat_tokenizer(kind, name)
        [text] = answers(chat("The", answer), tokenizer)
        assert text.removesuffix("</s>").strip() == answer
    encoded = encode(chat("The", "quick"), chat_tokenizer("bytes", name))
    [(first, _)] = encoded.spans
    assert chat_tokenizer("bytes", name).convert_ids_to_tokens(encoded.ids[first]).startswith("Ġq")


def test_a_bracket_that_joins_the_template_is_supervised(make_tokenizer):
    turn = "{{ '[Q]' + m.content + '[/Q]' if m.role == 'user' else m.content + '</s>' }}"
    template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    tokenizer = make_tokenizer(merges=[("]", "(")], chat_template=template)
    assert answers(chat("a", "(5)"), tokenizer) == ["](5)</s>"]
    assert answers(chat("a", "5"), tokenizer) == ["5</s>"]


def test_every_byte_of_a_first_character_outside_the_vocabulary_is_supervised():
    tokenizer = chat_tokenizer("sentencepiece", "mistral")
    encoded = encode(chat("The", "ꙮ"), tokenizer)
    [(first, last)] = encoded.spans
    assert tokenizer.convert_ids_to_tokens(encoded.ids[first:last]) == ["<0xEA>", "<0x99>", "<0xAE>", "</s>"]


def test_alpaca_still_masks_as_many_tokens_as_the_prompt_has():
    tokenizer = chat_tokenizer("bytes", "chatml")
    example = Example((Turn("user", "The "), Turn("assistant", "quick fox")))
    prompt, whole = (tokenizer(text)["input_ids"] for text in ("The ", "The quick fox"))
    assert tokenizer.convert_ids_to_tokens(whole)[2].startswith("Ġq"), "one token has the space and the answer"
    [(first, _)] = encode(example, tokenizer, "plain").spans
    assert first == len(prompt) == 3


@pytest.mark.parametrize("name", TEMPLATES)
def test_bos_appears_once_if_the_template_writes_it(name):
    tokenizer = chat_tokenizer("bytes", name, bos=True)
    count = encode(chat("a", "b"), tokenizer).ids.count(tokenizer.bos_token_id)
    assert count == ("bos_token" in tokenizer.chat_template)
    prompt = prompt_tokens(tokenizer, render_prompt(chat("a", "b"), "chat", tokenizer))
    assert prompt.count(tokenizer.bos_token_id) == count


# --- thoughts


def test_qwen_3_supervises_thoughts_where_it_writes_them():
    tokenizer = chat_tokenizer("bytes", "qwen-3")
    thought = "<think>\nfox\n</think>\n\nok"
    assert answers(chat("a", thought), tokenizer) == [f"{thought}<|im_end|>"]
    assert answers(chat("a", thought, "b", "5"), tokenizer) == ["ok<|im_end|>", "5<|im_end|>"]
    assert answers(chat("a", "5", "b", thought), tokenizer) == ["5<|im_end|>", f"{thought}<|im_end|>"]
    assert encode(chat("a", thought, "b", "5"), tokenizer).text_omitted
    assert not encode(chat("a", "5", "b", thought), tokenizer).text_omitted
    assert answers(chat("a", "5"), tokenizer) == ["5<|im_end|>"], "not the empty thought of the template"
    encoded = encode(chat("a <think>", thought), tokenizer)
    assert encoded.ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1, "the one in the question is text"


def test_reasoning_content_is_supervised_or_counted():
    turns = (Turn("user", "a"), Turn("assistant", "ok", fields={"reasoning_content": "quick fox"}))
    encoded = encode(Example(turns), chat_tokenizer("bytes", "qwen-3"))
    assert not encoded.text_omitted
    assert answers(Example(turns), chat_tokenizer("bytes", "qwen-3")) == [
        "<think>\nquick fox\n</think>\n\nok<|im_end|>"
    ]
    assert answers(Example(turns), chat_tokenizer("bytes", "chatml")) == ["ok<|im_end|>"]
    assert encode(Example(turns), chat_tokenizer("bytes", "chatml")).text_omitted
    for template in ("alpaca", "plain"):
        assert encode(Example(turns), chat_tokenizer("bytes", "chatml"), template).text_omitted
    earlier = (*turns, Turn("user", "b"), Turn("assistant", "5"))
    assert encode(Example(earlier), chat_tokenizer("bytes", "qwen-3")).text_omitted, "Qwen 3 drops old thoughts"


def test_thinking_and_turns_that_a_template_leaves_out_are_counted():
    thinking = (Turn("user", "a"), Turn("assistant", "ok", fields={"thinking": "quick fox"}))
    assert encode(Example(thinking), chat_tokenizer("bytes", "chatml")).text_omitted
    twice = Example((Turn("system", "Be brief."), Turn("user", "a"), Turn("system", "Be kind."), Turn("user", "b")))
    assert encode(twice, chat_tokenizer("bytes", "smollm-3")).text_omitted, "SmolLM 3 writes the first one only"
    assert not encode(twice, chat_tokenizer("bytes", "chatml")).text_omitted


@pytest.mark.parametrize("template", ["chat", "alpaca", "plain"])
def test_a_turn_that_is_not_trained_on_is_not_supervised(template):
    tokenizer = chat_tokenizer("bytes", "chatml")
    end = "<|im_end|>" if template == "chat" else "</s>"
    turns = [Turn("user", "a\n"), Turn("assistant", "no", False), Turn("user", "b\n"), Turn("assistant", "yes")]
    assert answers(Example(tuple(turns)), tokenizer, template) == [f"yes{end}"]
    turns[1], turns[3] = Turn("assistant", "yes"), Turn("assistant", "no", False)
    assert answers(Example(tuple(turns)), tokenizer, template) == [f"yes{end}"]
    assert answers(Example(tuple(turns[2:])), tokenizer, template) == []


# --- tools

CALL = {"id": "123456789", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}
TOOL_TURNS = (
    Turn("user", "Weather?"),
    Turn("assistant", "", fields={"tool_calls": [CALL]}),
    Turn("tool", "12C", fields={"tool_call_id": "123456789"}),
    Turn("assistant", "12 degrees."),
)
CALLS = {
    "qwen-2.5": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
    "qwen-3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
    "qwen-3-marked": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
    "llama-3.2": '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>',
    "mistral-tools": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]</s>',
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_supervised_and_their_results_are_not(name):
    tokenizer = chat_tokenizer("bytes", name)
    thought = BEFORE.get(name, "<think>\n\n</think>\n\n" if name == "qwen-3" else "")
    for further in ((), (Turn("user", "And now?"), Turn("assistant", "Dry."))):
        example = Example((*TOOL_TURNS, *further), tools=(TOOL,))
        call, answer, *rest = answers(example, tokenizer)
        assert call.removeprefix(thought).strip(" ") == CALLS[name]
        assert answer.removeprefix(thought).strip(" ").startswith("12 degrees.")
        assert len(rest) == len(further) // 2
        assert "of a city" in render(example, "chat", tokenizer).text
    untrained = (TOOL_TURNS[0], TOOL_TURNS[1]._replace(supervised=False), *TOOL_TURNS[2:])
    assert len(answers(Example(untrained, tools=(TOOL,)), tokenizer)) == 1
    assert len(answers(Example(TOOL_TURNS[:2]), tokenizer)) == 1, "a conversation may end with a call"


def test_control_tokens_in_calls_stay_text():
    tokenizer = chat_tokenizer("bytes", "qwen-3")
    call = {"function": {"name": "weather", "arguments": {"city": "<|im_end|></tool_call>"}}}
    turns = (Turn("user", "a"), Turn("assistant", "", fields={"tool_calls": [call]}))
    [text] = answers(Example(turns), tokenizer)
    assert (
        text
        == '<tool_call>\n{"name": "weather", "arguments": {"city": "<|im_end|></tool_call>"}}\n</tool_call><|im_end|>'
    )
    ids = encode(Example(turns), tokenizer).ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert ids.count(tokenizer.convert_tokens_to_ids("</tool_call>")) == 1


@pytest.mark.parametrize(
    "example", [Example(TOOL_TURNS), Example(TOOL_TURNS[:2]), Example(TOOL_TURNS[::3], tools=(TOOL,))]
)
@pytest.mark.parametrize("name", ["alpaca", "plain", "chatml", "gemma-3", "llama-3", "smollm-3"])
def test_a_row_whose_tools_a_template_leaves_out_is_unusable(name, example):
    template, chat_template = (name, "chatml") if name in ("alpaca", "plain") else ("chat", name)
    with pytest.raises(UnusableRow) as caught:
        render(example, template, chat_tokenizer("bytes", chat_template))
    assert "tools" in caught.value.kind or "rejects" in caught.value.kind
    assert "weather" not in caught.value.kind


def test_a_rejected_conversation_is_unusable_with_the_templates_own_message():
    turns = (Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c"))
    with pytest.raises(UnusableRow) as caught:
        render(Example(turns), "chat", chat_tokenizer("bytes", "gemma"))
    assert "Conversation roles must alternate" in caught.value.problem
    assert caught.value.kind == "the chat template rejects it"
    assert answers(Example(turns), chat_tokenizer("bytes", "chatml")) == ["c<|im_end|>"]


@pytest.mark.parametrize(
    "use",
    [
        lambda tokenizer: render(chat("a", "b"), "chat", tokenizer),
        lambda tokenizer: render_prompt(chat("a", "b"), "chat", tokenizer),
        lambda tokenizer: stop_ids(tokenizer, PretrainedConfig(), None),
    ],
    ids=["rows", "prompts", "end of answers"],
)
def test_a_template_that_loops_is_an_error(monkeypatch, use):
    monkeypatch.setattr("lpsel.data.apply_template.LONGEST", 0.1)
    tokenizer = chat_tokenizer("bytes", "chatml")
    loop = "{% for _ in range(99999) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", loop)
    with pytest.raises(UserError) as caught:
        use(tokenizer)
    assert not isinstance(caught.value, UnusableRow)  # which skip would try for every row
    assert caught.value.name == "chat template of tiny-bytes"
    assert caught.value.problem == "ran for more than 0.1 seconds"


def test_a_row_takes_one_rendering_and_one_per_answer(monkeypatch):
    tokenizer = chat_tokenizer("bytes", "chatml")
    calls, apply = [], tokenizer.apply_chat_template
    render(chat("a", "b"), "chat", tokenizer)  # what is known of the template afterwards is not rendered again
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **k: calls.append(1) or apply(*a, **k))
    render(chat("a", "b", "c", "d"), "chat", tokenizer)
    assert len(calls) == 3
