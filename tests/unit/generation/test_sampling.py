import random

import pytest
import torch
from fixtures.generation import answer_batches, generate
from scipy.stats import chisquare

from lpsel.errors import UserError
from lpsel.generation.sampling import Sampling

PROMPTS = ["Add 2 and 3.", "a", "Say: yes, no, yes, no, yes", "What is the color of the sky?", "zz", "b" * 40]
WARM = Sampling(12, temperature=1.5, top_p=0.95, seed=7)


def first_tokens(model, tokenizer, prompt, count, **settings):
    """The first token of a prompt's answer, for many seeds."""
    new = []
    for seed in range(count):
        (answer,) = generate(model, tokenizer, [prompt], Sampling(1, seed=seed, **settings))
        new.append(tokenizer(answer.text, add_special_tokens=False)["input_ids"] if answer.text else [256])
    return [ids[0] for ids in new]


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_sample_does_not_depend_on_the_batch(random_models, byte_tokenizer, kind):
    model = random_models[kind]
    together = generate(model, byte_tokenizer, PROMPTS, WARM, batch_tokens=10_000)
    assert generate(model, byte_tokenizer, PROMPTS, WARM, batch_tokens=1) == together
    order = list(range(len(PROMPTS)))
    random.Random(3).shuffle(order)
    shuffled = generate(model, byte_tokenizer, [PROMPTS[i] for i in order], WARM, batch_tokens=120)
    assert shuffled == [together[i] for i in order]


def test_answers_depend_on_the_seed(random_models, byte_tokenizer):
    seeds = (7, 8, 7)
    first, second, again = (
        generate(random_models["llama"], byte_tokenizer, PROMPTS, Sampling(12, 1.5, seed=seed)) for seed in seeds
    )
    assert first == again
    assert sum(a.text != b.text for a, b in zip(first, second, strict=True)) >= len(PROMPTS) - 1


def test_the_global_random_state_is_not_changed(random_models, byte_tokenizer):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    generate(random_models["llama"], byte_tokenizer, PROMPTS, WARM)
    assert torch.equal(torch.rand(3), expected)


def test_tokens_are_sampled_with_their_probability(random_models, byte_tokenizer):
    model, temperature = random_models["opt"], 4.0
    ids = torch.tensor([byte_tokenizer("a")["input_ids"]])
    with torch.no_grad():
        likely = (model(ids).logits[0, -1].double() / temperature).softmax(-1)
    ascii_only = torch.arange(len(likely)) < 94  # these round-trip through the byte tokenizer
    count = 400
    found = torch.bincount(
        torch.tensor(first_tokens(model, byte_tokenizer, "a", count, temperature=temperature)), minlength=len(likely)
    )
    groups = ascii_only.nonzero().flatten().chunk(3)
    observed = [int(found[group].sum()) for group in groups]
    expected = [float(likely[group].sum()) * count for group in groups]
    assert min(expected) > 5
    rest_observed, rest_expected = count - sum(observed), count - sum(expected)
    assert chisquare([*observed, rest_observed], [*expected, rest_expected]).pvalue > 0.001


def test_a_nucleus_of_one_token_is_the_greedy_answer(random_models, byte_tokenizer):
    model = random_models["llama"]
    greedy = generate(model, byte_tokenizer, PROMPTS, Sampling(12))
    assert generate(model, byte_tokenizer, PROMPTS, Sampling(12, temperature=1.0, top_p=1e-6)) == greedy
    assert generate(model, byte_tokenizer, PROMPTS, Sampling(12, temperature=1e-4)) == greedy


def test_every_batch_is_there_when_it_is_done(random_models, byte_tokenizer):
    batches = list(answer_batches(random_models["llama"], byte_tokenizer, PROMPTS, WARM, batch_tokens=1))
    assert [len(done) for done in batches] == [1] * len(PROMPTS)
    answers = {i: answer for done in batches for i, answer in done.items()}
    assert answers == dict(enumerate(generate(random_models["llama"], byte_tokenizer, PROMPTS, WARM)))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("max_new_tokens", 0, "must be an integer, at least 1"),
        ("max_new_tokens", 2.5, "must be an integer, at least 1"),
        ("temperature", -1, "must be a number, at least 0"),
        ("temperature", "hot", "must be a number, at least 0"),
        ("temperature", float("nan"), "must be a number, at least 0"),
        ("top_p", 0, "must be a number greater than 0"),
        ("top_p", 1.5, "must be at most 1"),
        ("seed", -1, "must be an integer, at least 0"),
        ("seed", 2**32, "must be less than 4294967296"),
    ],
)
def test_invalid_settings_are_rejected(name, value, problem):
    with pytest.raises(UserError) as caught:
        Sampling(**{name: value})
    assert (caught.value.name, caught.value.problem) == (f"evaluator.{name}", problem)


def test_greedy_settings_have_neither_seed_nor_top_p():
    assert Sampling(5, seed=1).settings() == Sampling(5, top_p=0.5, seed=2).settings()
    assert Sampling(5, 0.7, seed=1).settings() != Sampling(5, 0.7, seed=2).settings()
