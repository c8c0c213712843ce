"""A judge behind an OpenAI-compatible server: hosted, vLLM, `transformers serve`, llama.cpp."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from lpsel.errors import UserError, is_int, is_number
from lpsel.generation.prompts import Prompt
from lpsel.judging.judge import ORDERS, UNREADABLE, Judgement, Order, Pair, preference_of
from lpsel.judging.prompt import check_orders, fill, load_prompt
from lpsel.judging.verdicts import Parser
from lpsel.redact import redact, register_secret

OPENAI = "https://api.openai.com/v1"
GIVE_UP = 10  # questions in a row that the server did not answer
GARBLED = "not a chat completion"


@dataclass(frozen=True)
class OpenAIJudge:
    """Asks a chat model, several questions at a time.

    The openai client repeats a request by itself, with growing pauses, on 408, 409, 429, 5xx, time-outs and dropped
    connections. The key is read from the environment and stays out of everything that is written.

    Attributes:
        model: as the server calls it.
        parser: from a reply to a verdict on the answers as shown.
        prompt: a prompt file of ours by name, or a path.
        base_url: the server, with its /v1.
        key_env: name of the environment variable with the key. Servers of one's own need none.
        request: parameters of every request, as the server knows them: temperature, max_tokens, ...
        reminder: said after a reply that cannot be read.
        attempts: replies asked for until one can be read.
        concurrency: questions under way at a time.
        timeout: seconds until a request is given up.
        max_retries: of a request.
        prompt_price, completion_price: dollars a million tokens.
        max_cost: dollars that a run may spend; it stops once they are spent, so that the questions then under way
            come on top.
        orders: in which every pair is shown.
        spent: dollars so far; of a comparison of several models, of all of them.
    """

    model: str
    parser: Parser
    prompt: str = "pairwise"
    base_url: str = OPENAI
    key_env: str = "OPENAI_API_KEY"
    request: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 1024})
    reminder: str = "That could not be read. Write the last line again, in the form that was asked for."
    attempts: int = 3
    concurrency: int = 8
    timeout: float = 120
    max_retries: int = 6
    prompt_price: float | None = None
    completion_price: float | None = None
    max_cost: float | None = None
    orders: tuple[Order, ...] = ORDERS
    text: str = field(init=False, repr=False)
    spent: float = field(init=False, repr=False, compare=False, default=0.0)

    def __post_init__(self) -> None:
        for name in ("attempts", "concurrency"):
            value = getattr(self, name)
            _require(is_int(value) and value >= 1, f"judge.{name}={value}: must be a whole number, 1 or more.")
        _require(
            is_number(self.timeout) and self.timeout > 0, f"judge.timeout={self.timeout}: must be above 0 seconds."
        )
        _require(
            is_int(self.max_retries) and self.max_retries >= 0,
            f"judge.max_retries={self.max_retries}: must be a whole number, 0 or more.",
        )
        for name in ("prompt_price", "completion_price", "max_cost"):
            value = getattr(self, name)
            _require(
                value is None or (is_number(value) and value >= 0), f"judge.{name}={value}: must be 0 dollars or more."
            )
        _require(
            self.max_cost is None or None not in (self.prompt_price, self.completion_price),
            f"judge.max_cost={self.max_cost}: needs judge.prompt_price and judge.completion_price, in dollars a "
            "million tokens.",
        )
        _require(
            isinstance(self.request, Mapping),
            f"judge.request={self.request}: must be parameters of a request, as in judge.request={{temperature: 0}}.",
        )
        check_orders(self.orders)
        url = urlsplit(self.base_url)
        _require(
            url.scheme in ("http", "https") and bool(url.hostname),
            f"judge.base_url={self.base_url}: must be an address such as http://127.0.0.1:8000/v1.",
        )
        _require(
            not (url.username or url.password or url.query),
            f"judge.base_url: no user, password or query in it ({url.scheme}://{url.hostname}); give a key in the "
            f"environment, as {self.key_env}.",
        )
        object.__setattr__(self, "orders", tuple(self.orders))
        object.__setattr__(self, "text", load_prompt(self.prompt))

    @property
    def name(self) -> str:
        return self.model

    def identity(self) -> dict[str, Any]:
        parser = getattr(self.parser, "func", self.parser)
        return {
            "judge": "openai",
            "model": self.model,
            "base_url": self.base_url,
            "prompt": self.text,
            "reminder": self.reminder,
            "parser": f"{parser.__module__}.{parser.__qualname__}",
            "request": self.request,
        }

    def cost(self, judgement: Judgement) -> float | None:
        tokens = (judgement.prompt_tokens, judgement.completion_tokens)
        parts = [
            None if count is None or price is None else count * price / 1e6
            for count, price in zip(tokens, (self.prompt_price, self.completion_price), strict=True)
        ]
        return None if None in parts else sum(part for part in parts if part is not None)

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Ask the server for one short reply, with everything as it will be: address, key, model, parameters."""
        pair = Pair("check", "Say hello.", "Hello.", "Hi.")
        with self._client(max_retries=min(self.max_retries, 2)) as client:
            for _ in range(self.attempts):
                said = self._ask(client, pair, "baseline_first", attempts=1)
                if said.failure in (None, UNREADABLE):
                    break
        if said.failure not in (None, UNREADABLE):
            raise UserError(self._unusable(said.failure))
        self._check_cost(said)

    def judge(self, asked: Sequence[tuple[Pair, Order]], keep: Callable[[Judgement], None]) -> None:
        stop, lock = Event(), Lock()
        in_a_row = 0

        def one(client: Any, pair: Pair, order: Order) -> None:
            nonlocal in_a_row
            if stop.is_set() or (self.max_cost is not None and self.spent >= self.max_cost):
                return
            judgement = self._ask(client, pair, order, self.attempts)
            keep(judgement)
            self._check_cost(judgement)
            unanswered = judgement.failure not in (None, UNREADABLE)
            with lock:
                object.__setattr__(self, "spent", self.spent + (self.cost(judgement) or 0.0))
                in_a_row = in_a_row + 1 if unanswered else 0
                if in_a_row >= GIVE_UP:
                    raise UserError(self._unusable(f"{judgement.failure}, {in_a_row} times in a row"))

        with self._client(self.max_retries) as client, ThreadPoolExecutor(self.concurrency) as pool:
            under_way = [pool.submit(one, client, pair, order) for pair, order in asked]
            try:
                for future in as_completed(under_way):
                    future.result()
            except BaseException:
                stop.set()  # what is under way is paid for: it ends and is kept
                raise

    def _client(self, max_retries: int) -> Any:
        from openai import OpenAI

        for noisy in ("httpx", "httpx2", "openai"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        key = os.environ.get(self.key_env)
        if not key and self.base_url == OPENAI:
            raise UserError(
                f"{self.key_env}: not set; export {self.key_env}=KEY for {self.base_url}, or give judge.base_url= of a "
                "server of your own."
            )
        register_secret(key or "")
        return OpenAI(base_url=self.base_url, api_key=key or "none", timeout=self.timeout, max_retries=max_retries)

    def _ask(self, client: Any, pair: Pair, order: Order, attempts: int) -> Judgement:
        """Ask until a reply can be read.

        A request that the server does not answer as it should, whatever the openai client has tried, is a failure that
        the next run asks again; one that the model does not answer as it should is the judge's last word.

        Raises:
            UserError: the key is wrong, or the address, or the server is gone.
        """
        import openai

        messages = [{"role": "user", "content": fill(self.text, pair.prompt, *pair.shown(order))}]
        said = Judgement(pair.id, order, None, failure=GARBLED)
        for attempt in range(1, attempts + 1):
            said = said._replace(attempts=attempt)
            try:
                reply = client.chat.completions.create(model=self.model, messages=messages, **self.request)
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise UserError(
                    f"judge.base_url={self.base_url}: does not take the key ({error.status_code}); put the right one "
                    f"into the environment variable {self.key_env}, or name another with judge.key_env=."
                ) from None
            except openai.NotFoundError as error:
                raise UserError(
                    f"judge.base_url={self.base_url}: has no model {self.model}, or nothing at that address "
                    f"({self._said(error)}); check judge.model= and the address, which mostly ends in /v1."
                ) from None
            except openai.APITimeoutError:
                return said._replace(failure=f"no answer within {self.timeout:g} s")
            except openai.APIConnectionError as error:
                if type(error.__cause__).__name__ == "ConnectError":  # of httpx: nobody is there; else it broke off
                    raise UserError(self._unusable(self._said(error))) from None
                return said._replace(failure=self._said(error))
            except openai.APIError as error:
                return said._replace(failure=self._said(error))
            except ValueError:  # JSON is announced, something else comes
                continue
            text = _text(reply)
            said = _counted(said, reply)
            if text is None:
                continue
            said = said._replace(failure=UNREADABLE)
            if not text:
                continue
            verdict = self.parser(text)
            said = said._replace(raw=text)
            if verdict is not None:
                return said._replace(preference=preference_of(verdict, order), failure=None)
            messages = [messages[0], {"role": "assistant", "content": text}, {"role": "user", "content": self.reminder}]
        return said

    def _check_cost(self, said: Judgement) -> None:
        if self.max_cost is not None and said.raw is not None and self.cost(said) is None:
            raise UserError(
                f"judge.max_cost={self.max_cost}: {self.base_url} does not report tokens, so that nothing is known of "
                "the cost; leave judge.max_cost out."
            )

    def _unusable(self, reason: str) -> str:
        return (
            f"judge.base_url={self.base_url}: does not answer ({reason}); check that the server runs there, has the "
            f"model {self.model} and takes judge.request, then start again: verdicts so far are kept."
        )

    def _said(self, error: Any) -> str:
        """What a server said of a request it did not answer, in one line and without the key."""
        import openai

        if not isinstance(error, openai.APIStatusError):
            return " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
        body = error.body if isinstance(error.body, dict) else {}
        told = body.get("message") or body.get("detail") or ""
        line = redact(" ".join(str(told).split()))[:200].rstrip(".")
        return f"{error.status_code}: {line}".rstrip(": ")


def _text(reply: Any) -> str | None:
    """What the model wrote, "" where that is nothing, None where the server sent something else."""
    try:
        text = reply.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) and text.strip() else ""


def _counted(said: Judgement, reply: Any) -> Judgement:
    """With the tokens of one more reply, where it reports them."""
    usage = getattr(reply, "usage", None)
    prompt, completion = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return said
    return said._replace(
        prompt_tokens=(said.prompt_tokens or 0) + prompt, completion_tokens=(said.completion_tokens or 0) + completion
    )


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)
