"""A judge on an OpenAI-compatible server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

from lpsel.errors import UserError, check_int, check_number
from lpsel.generation.openai_client import MALFORMED, OPENAI, Endpoint, Refused, Reply, RequestFailed, run_concurrently
from lpsel.generation.prompts import Prompt
from lpsel.judging.judge import (
    CUT_OFF,
    ORDERS,
    UNREADABLE,
    Judgement,
    Order,
    Pair,
    Question,
    check_orders,
    preference_of,
)
from lpsel.judging.prompt import fill, load_prompt
from lpsel.judging.verdicts import Parser
from lpsel.redact import redacted

MAX_FAILURES = 10  # failed questions in a row after which to stop
HAS_REPLIED = (None, UNREADABLE, CUT_OFF)  # values of `failure` if the server replied
RESERVED = ("model", "messages", "stream")  # parameters that the judge sets, or that change the form of the reply
LIMITS = ("max_tokens", "max_completion_tokens")  # parameters that limit the length of a reply
LIMIT_FACTOR = 4  # raises the limit after a reply was cut off
REMINDER = "Your reply did not contain a valid verdict. Reply again and end with the verdict in the requested format."


@dataclass
class OpenAIJudge:
    """Asks a chat model, several questions at a time. conf/judge/openai.yaml documents its options."""

    model: str
    parser: Parser  # converts a reply to a verdict on the answers as shown
    prompt: str = "pairwise"
    base_url: str = OPENAI
    key_env: str | None = None
    request: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 1024})
    reminder: str = REMINDER
    attempts: int = 3
    concurrency: int = 8
    timeout: float = 120
    max_retries: int = 6
    prompt_price: float | None = None
    completion_price: float | None = None
    max_cost: float | None = None  # dollars for all models of a run; pending questions when it is reached are extra
    orders: Sequence[Order] = ORDERS
    text: str = field(init=False, repr=False)  # content of the prompt file
    endpoint: Endpoint = field(init=False, repr=False)
    spent: float = field(init=False, default=0.0)  # dollars

    def __post_init__(self) -> None:
        if self.model in (None, ""):
            raise UserError("judge.model", None, "is not set", "set it to the name of the model on the server")
        self.model = str(self.model)  # YAML reads a name of digits as a number
        check_int("judge.attempts", self.attempts, 1)
        check_int("judge.concurrency", self.concurrency, 1)
        check_number("judge.timeout", self.timeout, above=0, hint="set seconds per request")
        check_int("judge.max_retries", self.max_retries, 0)
        for name in ("prompt_price", "completion_price", "max_cost"):
            if getattr(self, name) is not None:
                check_number(f"judge.{name}", getattr(self, name), minimum=0)
        if self.max_cost is not None and None in (self.prompt_price, self.completion_price):
            hint = "set judge.prompt_price and judge.completion_price in dollars per million tokens"
            raise UserError("judge.max_cost", self.max_cost, "needs token prices", hint)
        if not isinstance(self.request, Mapping):
            hint = "set a mapping such as judge.request={temperature: 0}"
            raise UserError("judge.request", self.request, "must be a mapping of request parameters", hint)
        check_orders(self.orders)
        self.endpoint = Endpoint(
            self.model,
            self.base_url,
            self.concurrency,
            option="judge.base_url",
            key_env=self.key_env,
            key_option="judge.key_env",
            timeout=self.timeout,
            max_retries=self.max_retries,
        )
        self.text = load_prompt(self.prompt)

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
            "request": redacted(self.request),
        }

    def cost(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        if prompt_tokens is None or completion_tokens is None:
            return None
        if self.prompt_price is None or self.completion_price is None:
            return None
        return prompt_tokens * self.prompt_price / 1e6 + completion_tokens * self.completion_price / 1e6

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Send a short test question with the address, key, model and parameters of the run."""
        pair = Pair("check", "Say hello.", "Hello.", "Hi.")
        with self._connect(max_retries=min(self.max_retries, 2)) as client:
            for _ in range(self.attempts):
                judgement = self._ask(client, pair, "baseline_first", attempts=1)
                if judgement.failure in HAS_REPLIED:
                    self._check_cost_is_known(judgement)
                    return
        raise self.endpoint.unavailable(judgement.failure)

    def judge(self, questions: Sequence[Question], save: Callable[[Judgement], None]) -> None:
        failures = 0  # in a row

        def ask(question: Question) -> Judgement | None:
            if self.max_cost is not None and self.spent >= self.max_cost:
                return None
            pair, order = question
            return self._ask(client, pair, order, self.attempts)

        def save_and_count(question: Question, judgement: Judgement) -> None:
            nonlocal failures
            save(judgement)
            self._check_cost_is_known(judgement)
            self.spent += self.cost(judgement.prompt_tokens, judgement.completion_tokens) or 0.0
            failures = 0 if judgement.failure in HAS_REPLIED else failures + 1
            if failures >= MAX_FAILURES:
                raise self.endpoint.unavailable(f"{judgement.failure}, {failures} times in a row")

        with self._connect() as client:
            run_concurrently(ask, questions, save_and_count, self.concurrency)

    def _connect(self, **changes: Any) -> Any:
        """Return the client; raise a UserError if it does not support a parameter in `request`."""
        client = replace(self.endpoint, **changes).connect()
        known = signature(client.chat.completions.create).parameters
        for name in self.request:
            if name in RESERVED:
                raise UserError(f"judge.request.{name}", None, "is set by the judge itself", "remove it")
            if name not in known:
                hint = f"set '+judge.request.extra_body={{{name}:VALUE}}' if the server supports it"
                raise UserError(f"judge.request.{name}", None, "the openai client has no such parameter", hint)
        return client

    def _ask(self, client: Any, pair: Pair, order: Order, attempts: int) -> Judgement:
        """Ask a question until a reply has a valid verdict, up to `attempts` times, or until a request fails.

        After a reply that was cut off, the limit is raised; after any other invalid reply, the reminder is sent.
        """
        question = {"role": "user", "content": fill(self.text, pair.prompt, *pair.shown(order))}
        messages = [question]
        request = dict(self.request)
        judgement = Judgement(pair.id, order, None, failure=MALFORMED)
        for attempt in range(1, attempts + 1):
            judgement = judgement._replace(attempts=attempt)
            try:
                reply = self.endpoint.complete(client, messages, **request)
            except RequestFailed as failure:
                if isinstance(failure, Refused) and judgement.failure in HAS_REPLIED:
                    return judgement  # a longer reply or the reminder does not fit into the context
                return judgement._replace(failure=str(failure))
            judgement = self._read(reply, judgement)
            if judgement.preference is not None:
                return judgement
            if judgement.failure == CUT_OFF:
                request |= {name: LIMIT_FACTOR * request[name] for name in LIMITS if request.get(name)}
            elif reply.text and reply.text.strip():
                reminder = {"role": "user", "content": self.reminder}
                messages = [question, {"role": "assistant", "content": reply.text}, reminder]
        return judgement

    def _read(self, reply: Reply, judgement: Judgement) -> Judgement:
        """Update a judgement with the tokens and the verdict of another reply."""
        if reply.prompt_tokens is not None and reply.completion_tokens is not None:
            judgement = judgement._replace(
                prompt_tokens=(judgement.prompt_tokens or 0) + reply.prompt_tokens,
                completion_tokens=(judgement.completion_tokens or 0) + reply.completion_tokens,
            )
        if reply.text is None:
            return judgement
        if reply.text.strip():
            judgement = judgement._replace(raw=reply.text)
        verdict = self.parser(reply.text)
        if verdict is None:
            return judgement._replace(failure=CUT_OFF if reply.finish_reason == "length" else UNREADABLE)
        return judgement._replace(failure=None, preference=preference_of(verdict, judgement.order))

    def _check_cost_is_known(self, judgement: Judgement) -> None:
        """Raise a UserError if `max_cost` is set, but the server does not report the tokens of a reply."""
        cost = self.cost(judgement.prompt_tokens, judgement.completion_tokens)
        if self.max_cost is not None and judgement.raw is not None and cost is None:
            problem = f"cannot be checked because {self.base_url} does not report tokens"
            raise UserError("judge.max_cost", self.max_cost, problem, "remove judge.max_cost")
