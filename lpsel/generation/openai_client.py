"""A model behind an OpenAI-compatible endpoint: a service, or a server of one's own (vLLM, transformers serve)."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lpsel.console import track
from lpsel.errors import UserError, first_line
from lpsel.generation.prompt import Prompt
from lpsel.generation.sampling import Generation, Sampling
from lpsel.redact import redact

NAMED = re.compile(r"(?P<model>.+)@(?P<base_url>https?://.+)")
RETRIES = 5  # of the client, with growing pauses: connections, time-outs, 408, 409, 429 and 5xx
SECONDS_TO_CONNECT = 20.0
KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Endpoint:
    """A model that a server answers for.

    Attributes:
        model: as the server calls it.
        base_url: of the server, up to and with its version: https://api.openai.com/v1.
        concurrency: requests under way at once.
    """

    model: str
    base_url: str
    concurrency: int = 8

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url)
        if address.username or address.password or address.query:
            shown = f"{address.scheme}://{address.hostname}{address.path}"
            raise UserError(
                f"model={self.model}@{shown}: the address has a password or key in it, which would be written down; "
                f"put the key into {KEY}."
            )
        if not isinstance(self.concurrency, int) or self.concurrency < 1:
            raise UserError(f"concurrency={self.concurrency}: must be at least 1 request at a time.")

    @classmethod
    def of(cls, name: str, concurrency: int = 8) -> "Endpoint | None":
        """The endpoint that MODEL@http(s)://... names, None for any other name."""
        named = NAMED.fullmatch(name)
        return cls(named["model"], named["base_url"].rstrip("/"), concurrency) if named else None

    @property
    def name(self) -> str:
        """The model's own, as shown in results."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]

    def identity(self) -> dict[str, str]:
        """What its answers are kept under. The server may change its model without a word: forget them then."""
        return {"endpoint": self.base_url, "model": self.model}

    def check(self) -> None:
        """Ask the server whether it is there and takes the key. Costs nothing.

        Raises:
            UserError: it is not, or does not.
        """
        import openai

        with self._client() as client, self._mistakes():
            try:
                client.with_options(timeout=SECONDS_TO_CONNECT, max_retries=1).models.list()
            except (openai.AuthenticationError, openai.PermissionDeniedError):
                raise
            except (openai.APIStatusError, openai.APIResponseValidationError):
                return  # it is there; not all servers can list their models

    def complete(
        self, conversations: Sequence[list[dict[str, str]]], sampling: Sampling, keep: Callable[[int, Generation], None]
    ) -> None:
        """Have every conversation continued, and hand each answer to `keep`, by the conversation's place.

        Raises:
            UserError: the server refuses, or cannot be reached any more; what is done by then has been kept.
        """
        with (
            self._client() as client,
            track(f"Answers, {self.name}", total=len(conversations), unit="rows") as advance,
            ThreadPoolExecutor(self.concurrency) as pool,
            self._mistakes(),
        ):
            under_way = {pool.submit(_ask, client, self.model, c, sampling): i for i, c in enumerate(conversations)}
            try:
                for done in as_completed(under_way):
                    answer = done.result()
                    keep(under_way[done], answer)
                    advance(tokens=answer.tokens or 0)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _client(self) -> Any:
        from openai import OpenAI

        # The client insists on a key, servers of one's own do without.
        return OpenAI(base_url=self.base_url, api_key=os.environ.get(KEY) or "none", max_retries=RETRIES)

    @contextmanager
    def _mistakes(self) -> Iterator[None]:
        import openai

        place = f"model={self.model}@{self.base_url}"
        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            # What servers say here repeats parts of the key.
            raise UserError(f"{place}: the server does not take the key; put the right one into {KEY}.") from None
        except openai.APIConnectionError as error:
            raise UserError(
                f"{place}: cannot be reached ({first_line(error.__cause__ or error)}); check the address, and that the "
                "server runs."
            ) from error
        except openai.OpenAIError as error:
            raise UserError(
                f"{place}: the server refuses ({redact(first_line(error))[:200]}); check the model's name and settings."
            ) from error


def conversation(prompt: Prompt) -> list[dict[str, str]]:
    """What an endpoint is sent: the turns as they are, Alpaca's input below the first user turn."""
    from lpsel.data.templates import chat_messages

    return chat_messages(prompt.example)


def _ask(client: Any, model: str, messages: list[dict[str, str]], sampling: Sampling) -> Generation:
    import openai

    asked: dict[str, Any] = {"model": model, "messages": messages, "temperature": sampling.temperature}
    if not sampling.greedy:
        asked |= {"top_p": sampling.top_p, "seed": sampling.seed}
    try:
        answer = client.chat.completions.create(**asked, max_tokens=sampling.max_new_tokens)
    except openai.BadRequestError as error:
        if error.param != "max_tokens":
            raise
        # The name that all servers know is the one that OpenAI's newer models refuse.
        answer = client.chat.completions.create(**asked, max_completion_tokens=sampling.max_new_tokens)
    if not answer.choices:
        raise openai.OpenAIError("an answer without choices")
    choice, usage = answer.choices[0], answer.usage
    return Generation(
        text=choice.message.content or "",
        tokens=usage.completion_tokens if usage else None,
        stopped=choice.finish_reason == "stop",
        prompt_tokens=usage.prompt_tokens if usage else None,
    )
