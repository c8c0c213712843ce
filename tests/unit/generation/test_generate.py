import copy
import random
import warnings

import pytest
import torch
from fixtures.generation import answer_batches, generate
from transformers import GenerationConfig

from lpsel.data.control_tokens import Rendered
from lpsel.errors import UserError
from lpsel.generation import generate as generation
from lpsel.generation.generate import in_order, prompt_room, stop_ids
from lpsel.generation.sampling import Sampling

ARCHITECTURES = ("llama", "gpt2", "opt", "gemma3")
CONTEXT = 64  # of every random model, in tokens
PROMPTS = ["Add 2 and 3.", "", "a", "Say: yes, no, yes, no, yes", "ümläut", "What is the color of the sky?", "zz"]


def greedy_by_hand(model, ids, steps, stops):
    """No padding, no cache, no generate(): the whole text again for every new token."""
    new = []
    with torch.no_grad():
        while len(new) < steps and (not new or new[-1] not in stops):
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def stops_of(model, tokenizer):
    return stop_ids(tokenizer, model.config, model.generation_config)


def with_end_of_turn(tokenizer):
    """A copy whose chat template closes an answer with <turn>."""
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<turn>\n{% endfor %}"
    return chat


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_batched_answers_equal_those_of_single_prompts(random_models, byte_tokenizer, kind):
    model = random_models[kind]
    together = generate(model, byte_tokenizer, PROMPTS, Sampling(12), batch_tokens=10_000)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        new = greedy_by_hand(model, byte_tokenizer(prompt)["input_ids"], 12, [256])
        assert answer.text == byte_tokenizer.decode(new, skip_special_tokens=True)
        assert answer.tokens == len(new)
    assert generate(model, byte_tokenizer, PROMPTS, Sampling(12), batch_tokens=1) == together
    assert len({answer.text for answer in together}) > 3


def test_answers_are_in_the_order_of_the_prompts(random_models, byte_tokenizer):
    texts = [answer.text for answer in generate(random_models["llama"], byte_tokenizer, PROMPTS, Sampling(5))]
    order = list(range(len(PROMPTS)))
    random.Random(1).shuffle(order)
    shuffled = generate(random_models["llama"], byte_tokenizer, [PROMPTS[i] for i in order], Sampling(5))
    assert [answer.text for answer in shuffled] == [texts[i] for i in order]


def test_prompts_are_read_as_they_are_answered(random_models, byte_tokenizer, monkeypatch):
    monkeypatch.setattr(generation, "WINDOW", 3)
    read = []
    prompts = (read.append(p) or p for p in PROMPTS)
    answers = in_order(answer_batches(random_models["llama"], byte_tokenizer, prompts, Sampling(5)))
    at_first = [next(answers)]
    assert len(read) == 3
    assert at_first + list(answers) == generate(random_models["llama"], byte_tokenizer, PROMPTS, Sampling(5))


def test_an_answer_ends_at_eos_which_is_not_part_of_its_text(random_models, byte_tokenizer):
    model = random_models["gpt2"]
    ids = byte_tokenizer(PROMPTS[0])["input_ids"]
    free = greedy_by_hand(model, ids, 12, [])
    own, model.generation_config = model.generation_config, GenerationConfig(eos_token_id=[256, free[3]])
    try:
        first, *_ = generate(model, byte_tokenizer, PROMPTS, Sampling(12))
    finally:
        model.generation_config = own
    expected = greedy_by_hand(model, ids, 12, [256, free[3]])
    assert expected[-1] == free[3]
    assert len(expected) < 12
    assert (first.stopped, first.tokens, first.text) == (True, len(expected), byte_tokenizer.decode(expected[:-1]))


def test_an_answer_can_be_empty(random_models, byte_tokenizer):
    model = random_models["gpt2"]
    (first,) = greedy_by_hand(model, byte_tokenizer("a")["input_ids"], 1, [])
    own, model.generation_config = model.generation_config, GenerationConfig(eos_token_id=first)
    try:
        (answer,) = generate(model, byte_tokenizer, ["a"], Sampling(12))
    finally:
        model.generation_config = own
    assert (answer.text, answer.tokens, answer.stopped) == ("", 1, True)


def test_an_answer_at_the_limit_has_not_stopped(random_models, byte_tokenizer):
    (answer,) = generate(random_models["llama"], byte_tokenizer, ["a"], Sampling(1))
    assert (answer.tokens, answer.stopped) == (1, False)


def test_the_end_of_turn_of_the_chat_template_ends_an_answer(random_models, byte_tokenizer):
    model = random_models["llama"]
    assert stops_of(model, byte_tokenizer) == [256]
    chat = with_end_of_turn(byte_tokenizer)
    assert stops_of(model, chat) == [256, 258]
    chat.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert stops_of(model, chat) == [256]


def test_the_models_own_generation_settings_are_ignored(random_models, byte_tokenizer):
    model = random_models["llama"]
    plain = generate(model, byte_tokenizer, PROMPTS, Sampling(12))
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=9.0, repetition_penalty=3.0, num_beams=2, max_length=3, eos_token_id=256
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert generate(model, byte_tokenizer, PROMPTS, Sampling(12)) == plain
        assert model.generation_config.num_beams == 2
    finally:
        model.generation_config = own


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_prompt_too_long_for_the_context_is_cut_after_its_bos(random_models, byte_tokenizer, kind):
    model = random_models[kind]
    prompt = "x" * 30 + "the end of a long prompt counts, not its beginning"
    answers = generate(model, byte_tokenizer, [prompt, "a"], Sampling(10))
    room = CONTEXT - 10
    assert [answer.prompt_cut for answer in answers] == [1 + len(prompt) - room, 0]
    assert answers[0].prompt_tokens == room
    kept = [257, *byte_tokenizer(prompt)["input_ids"][-(room - 1) :]]
    assert answers[0].text == byte_tokenizer.decode(greedy_by_hand(model, kept, 10, [256]), skip_special_tokens=True)


def test_a_rendered_prompt_decides_about_special_tokens(random_models, byte_tokenizer):
    bare, full = (Rendered("abc", [], False, special) for special in (False, True))
    answers = generate(random_models["llama"], byte_tokenizer, [bare, full, "abc"], Sampling(6))
    assert [answer.prompt_tokens for answer in answers] == [3, 4, 4]
    assert answers[1] == answers[2]


def test_an_eos_that_the_tokenizer_appends_is_not_fed(random_models, byte_tokenizer):
    from tokenizers import processors

    ends = copy.deepcopy(byte_tokenizer)
    ends.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 257), ("<eos>", 256)]
    )
    assert ends("abc")["input_ids"][-1] == 256
    model = random_models["llama"]
    assert generate(model, ends, ["abc"], Sampling(6)) == generate(model, byte_tokenizer, ["abc"], Sampling(6))


def test_no_room_for_a_prompt(random_models):
    with pytest.raises(UserError) as caught:
        prompt_room(random_models["opt"].config, CONTEXT)
    assert (caught.value.name, caught.value.value) == ("evaluator.max_new_tokens", CONTEXT)
    assert caught.value.hint == "set 32 or less"
    assert prompt_room(random_models["gpt2"].config, 60) == 4


def test_no_prompts_give_no_answers(random_models, byte_tokenizer):
    assert generate(random_models["llama"], byte_tokenizer, [], Sampling(5)) == []
