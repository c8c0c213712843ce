"""Get the answers of models to prompts, from the cache or by generating them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lpsel.cache import Journal
from lpsel.console import track
from lpsel.data.apply_template import Messages
from lpsel.data.chat_template import arguments_as_text, chat_messages
from lpsel.data.column_forms import Example, Turn
from lpsel.data.control_tokens import Rendered
from lpsel.data.templates import render_prompt, resolve_template
from lpsel.distributed import deferred_signals, end_if_signaled
from lpsel.errors import UnusableRow, UserError
from lpsel.generation.openai_client import MALFORMED, Endpoint, Refused, RequestFailed, run_concurrently
from lpsel.generation.prompts import Prompt
from lpsel.generation.sampling import Generation, Sampling
from lpsel.model.copies import Copies, devices_for
from lpsel.model.fingerprint import model_fingerprint
from lpsel.model.load import load_config, load_model, load_tokenizer, locate
from lpsel.model.spec import ModelSpec
from lpsel.storage import digest

if TYPE_CHECKING:
    import torch


class _Inputs(NamedTuple):
    """The model inputs for all prompts, and the cache of the answers."""

    source: str  # where the model is: a path or MODEL@ADDRESS
    tokenizer: Any  # None for an endpoint
    by_key: dict[str, Any]  # inputs by digest, so that identical prompts are answered once
    keys: list[str]  # digests of the inputs of all prompts, in order
    journal: Journal

    def cached(self) -> dict[str, Generation]:
        lines = (line for line in self.journal.read() if line["key"] in self.by_key)
        return {line.pop("key"): Generation(**line) for line in lines}


def check(
    model: ModelSpec | Endpoint, prompts: Sequence[Prompt], sampling: Sampling, *, cache_dir: Path, dtype: "torch.dtype"
) -> int:
    """Check what can be checked without loading the model, and return the number of prompts without a cached answer.

    An endpoint is only contacted if answers are missing.

    Raises:
        UserError: the model does not exist, its context has no room for a prompt, the template is unsuitable, or the
            endpoint cannot be reached or rejects the key.
    """
    inputs = _inputs(model, prompts, sampling, cache_dir, dtype)
    cached = inputs.cached()
    missing = sum(key not in cached for key in inputs.keys)
    if missing and isinstance(model, Endpoint):
        model.check()
    return missing


def rejections(model: ModelSpec | Endpoint, prompts: Sequence[Prompt], cache_dir: Path) -> dict[str, UnusableRow]:
    """Return errors by prompt id for prompts that the template of a local model rejects, or whose tools it lacks."""
    if isinstance(model, Endpoint):
        return {}
    tokenizer = load_tokenizer(model, locate(model, cache_dir))
    errors = {}
    for prompt in prompts:
        try:
            _rendered(model, prompt, tokenizer)
        except UnusableRow as error:
            errors[prompt.id] = error
    return errors


def answers(
    model: ModelSpec | Endpoint,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    cache_dir: Path,
    device: "torch.device",
    dtype: "torch.dtype",
    batch_tokens: int,
) -> tuple[list[Generation], dict[str, Any]]:
    """Return a model's answers to all prompts, from the cache where possible.

    The cache key of an answer includes the model's weights and tokenizer (or the endpoint's address and model), the
    sampling settings, the precision and the model input. Processes wait for each other's answers.

    Args:
        model: a local model, whose template renders the prompts; or an endpoint, which gets the turns as messages.
        device, dtype, batch_tokens: settings for a local model, see `generate`; many prompts are split over all GPUs.

    Returns:
        A generation for every prompt, in order; and counts for result.json. `generated_tokens` is None if an endpoint
        does not report it.

    Raises:
        UserError: as in `check`, or the model cannot be loaded, or the endpoint fails. Finished answers are cached.
    """
    inputs = _inputs(model, prompts, sampling, cache_dir, dtype)
    started = time.perf_counter()
    with inputs.journal.locked():
        known = inputs.cached()
        reused = sum(key in known for key in inputs.keys)
        missing = [key for key in inputs.by_key if key not in known]

        def save(answered: dict[int, Generation]) -> None:
            new = {missing[i]: answer for i, answer in answered.items()}
            inputs.journal.append({"key": key, **asdict(answer)} for key, answer in new.items())
            known.update(new)

        unanswered = [inputs.by_key[key] for key in missing]
        if unanswered and isinstance(model, Endpoint):
            prompt_ids = dict(zip(inputs.keys, (prompt.id for prompt in prompts), strict=True))
            _request(model, unanswered, [prompt_ids[key] for key in missing], sampling, save)
        elif unanswered and isinstance(model, ModelSpec):
            from lpsel.generation.generate import ROWS_PER_GPU, generate

            load = partial(_load, model, inputs.source, dtype)
            devices = devices_for(device, len(unanswered), ROWS_PER_GPU)
            with Copies(load, devices) as copies, deferred_signals():
                for answered in generate(
                    copies.map,
                    inputs.tokenizer,
                    unanswered,
                    len(unanswered),
                    sampling,
                    batch_tokens=batch_tokens,
                    title=f"Answers, {model.name}",
                ):
                    save(answered)
                    end_if_signaled()
    generations = [known[key] for key in inputs.keys]
    return generations, {
        "name": model.name,
        "model": inputs.source,
        "prompts": len(prompts),
        "reused": reused,
        "generated": len(missing),
        **answer_counts(generations),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _load(model: ModelSpec, path: str, dtype: "torch.dtype", device: "torch.device") -> Any:
    return load_model(model, path, dtype).to(device)


def _inputs(
    model: ModelSpec | Endpoint, prompts: Sequence[Prompt], sampling: Sampling, cache_dir: Path, dtype: "torch.dtype"
) -> _Inputs:
    inputs: list[Any]
    depends_on: dict[str, Any]
    if isinstance(model, Endpoint):
        source, tokenizer = f"{model.model}@{model.base_url}", None
        inputs = [_conversation(prompt.example) for prompt in prompts]
        depends_on = {"endpoint": model.base_url, "model": model.model}
    else:
        from lpsel.generation.generate import prompt_room

        source = locate(model, cache_dir)
        prompt_room(load_config(model, source), sampling.max_new_tokens)
        tokenizer = load_tokenizer(model, source)
        inputs = [_rendered(model, prompt, tokenizer) for prompt in prompts]
        fingerprint = model_fingerprint(source, model.revision, cache_dir)
        depends_on = {"model": fingerprint, "dtype": str(dtype).removeprefix("torch.")}
    keys = [_key(model_input) for model_input in inputs]
    journal = Journal.of(cache_dir, "answers", depends_on | sampling.settings())
    return _Inputs(source, tokenizer, dict(zip(keys, inputs, strict=True)), keys, journal)


def _key(model_input: Any) -> str:
    """Return the digest of a conversation, or of the fields of a rendered prompt that determine its tokens."""
    if not isinstance(model_input, Rendered):
        return digest(model_input)
    fields: list[Any] = [model_input.text, model_input.supervised]
    fields += [model_input.append_eos, model_input.add_special_tokens]
    return digest(fields if model_input.controls is None else [*fields, model_input.controls])


def _conversation(example: Example) -> Any:
    """Convert a prompt to the input of an endpoint: its messages, or an object with messages and tools.

    Unlike chat templates, endpoints expect the arguments of tool calls as text, tools with their type, and an id of
    every call.
    """
    messages = _with_call_ids(arguments_as_text(chat_messages(example), ensure_ascii=True))
    if not example.tools:
        return messages
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in example.tools]
    return {"messages": messages, "tools": tools}


def _with_call_ids(messages: Messages) -> Messages:
    """Add missing ids to tool calls, and to their results in the same order."""
    numbers = count(1)
    unanswered: list[str] = []  # ids of calls without a result
    completed: Messages = []
    for message in messages:
        if calls := message.get("tool_calls"):
            calls = [call if call.get("id") else {**call, "id": f"call_{next(numbers)}"} for call in calls]
            unanswered = [call["id"] for call in calls]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            if message.get("tool_call_id") in unanswered:
                unanswered.remove(message["tool_call_id"])
            elif unanswered and not message.get("tool_call_id"):
                message = {**message, "tool_call_id": unanswered.pop(0)}
        completed.append(message)
    return completed


def _rendered(model: ModelSpec, prompt: Prompt, tokenizer: Any) -> Rendered:
    """Render a prompt with the model's template.

    An empty answer is added, because `render_prompt` renders the turns before the last answer.
    """
    example = prompt.example._replace(turns=(*prompt.example.turns, Turn("assistant", "")))
    return render_prompt(example, resolve_template(model.template, prompt.conversation, tokenizer), tokenizer)


def _request(
    endpoint: Endpoint,
    conversations: list[Any],
    names: list[str],
    sampling: Sampling,
    save: Callable[[dict[int, Generation]], None],
) -> None:
    parameters: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens}
    if not sampling.greedy:
        parameters |= {"top_p": sampling.top_p, "seed": sampling.seed}
    with endpoint.connect() as client, track(f"Answers, {endpoint.name}", len(conversations)) as advance:

        def ask(index: int) -> Generation:
            try:
                conversation = conversations[index]
                request = conversation if isinstance(conversation, dict) else {"messages": conversation}
                reply = endpoint.complete(client, **request, **parameters)
            except Refused as failure:
                hint = "remove it from the prompts; if all are refused, fix the settings that the server rejects"
                raise UserError("prompts", names[index], f"{endpoint.name} refuses it ({failure})", hint) from None
            except RequestFailed as failure:
                raise endpoint.unavailable(failure) from None
            if reply.text is None:
                raise endpoint.unavailable(f"{MALFORMED}, for prompt {names[index]}")
            stopped = reply.finish_reason not in ("length", "content_filter")  # servers have many names for a stop
            return Generation(reply.text, reply.completion_tokens, stopped, reply.prompt_tokens)

        def save_one(index: int, answer: Generation) -> None:
            save({index: answer})
            advance(tokens=answer.tokens or 0)

        run_concurrently(ask, range(len(conversations)), save_one, endpoint.concurrency)


def answer_counts(generations: list[Generation]) -> dict[str, Any]:
    """Count cut prompts, cut or empty answers, and generated tokens (None if any count is unknown)."""
    tokens = [generation.tokens for generation in generations]
    return {
        "prompts_cut": sum(generation.prompt_cut > 0 for generation in generations),
        "answers_cut": sum(not generation.stopped for generation in generations),
        "answers_empty": sum(not generation.text.strip() for generation in generations),
        "generated_tokens": None if None in tokens else sum(count or 0 for count in tokens),
    }
