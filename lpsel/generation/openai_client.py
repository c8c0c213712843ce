"""A client for OpenAI-compatible servers: hosted services, vLLM, `transformers serve`, llama.cpp."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lpsel.errors import UserError, first_line, is_int
from lpsel.redact import redact, register_secret
from lpsel.storage import utf8

OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"  # environment variable with the key, which by default is only sent to OpenAI's server
CONNECT_TIMEOUT = 20.0  # seconds
MAX_REPLY = 16 << 20  # bytes
MAX_TOKENS = 2**31 - 1  # largest plausible token count of a reply; servers may report anything
MALFORMED = "not a chat completion"
NO_ADDRESS = ("is not a web address", "set an address such as http://127.0.0.1:8000/v1")
ENDPOINT = re.compile(r"(?P<model>.+)@(?P<base_url>https?://.+)")

log = logging.getLogger(__name__)
_warn_once = cache(log.warning)

Item = TypeVar("Item")
Result = TypeVar("Result")


class RequestFailed(Exception):
    """A request failed after all retries, but a later one may succeed."""


class Refused(RequestFailed):
    """The server refused a request and would refuse it again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of a chat model."""

    text: str | None  # None if the server sent something other than a chat completion
    finish_reason: str | None = None
    prompt_tokens: int | None = None  # both None if the server does not report both
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Endpoint:
    """A chat model on an OpenAI-compatible server."""

    model: str  # name of the model on the server
    base_url: str  # address including the version, such as https://api.openai.com/v1
    concurrency: int = 8  # maximum number of concurrent requests
    option: str = "base_url"  # errors name the address as `option=prefix+base_url`
    prefix: str = ""
    key_env: str | None = None  # environment variable with the API key; None for OPENAI_API_KEY or, elsewhere, no key
    key_option: str = "key_env"  # errors name the variable as `key_option=key_env`
    timeout: float = 600.0  # seconds per request
    max_retries: int = 5  # with growing pauses, on 408, 409, 429, 5xx, timeouts and dropped connections

    @classmethod
    def of(cls, name: str, key_env: str | None = None) -> "Endpoint | None":
        """Parse `model=MODEL@http(s)://...` as an endpoint; None for any other name.

        OpenAI's server gets OPENAI_API_KEY, and any other server the key in `key_env`.
        """
        match = ENDPOINT.fullmatch(name)
        if match is None:
            return None
        model, base_url = match["model"], match["base_url"].rstrip("/")
        endpoint = cls(model, base_url, option="model", prefix=f"{model}@")
        return endpoint if endpoint.host == urlsplit(OPENAI).hostname else replace(endpoint, key_env=key_env)

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.base_url)
        except ValueError:  # incomplete IPv6 address
            raise self.error(*NO_ADDRESS) from None
        if address.scheme not in ("http", "https") or not address.hostname:
            raise self.error(*NO_ADDRESS)
        if address.username or address.password or address.query:
            without_secret = replace(self, base_url=f"{address.scheme}://{address.hostname}{address.path}")
            problem = "contains a password or key, which would be saved with the results"
            raise without_secret.error(problem, self._key_hint)

    @property
    def host(self) -> str:
        """Host name or IP address of the server, without the port."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def key_variable(self) -> str | None:
        """The environment variable with the key for this server; None if it gets no key."""
        return self.key_env or (OPENAI_KEY if self.host == urlsplit(OPENAI).hostname else None)

    @property
    def _key_hint(self) -> str:
        return f"set {self.key_option} to the environment variable that holds the key"

    @property
    def name(self) -> str:
        """Name of the model, as shown in results."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]

    def error(self, problem: str, hint: str) -> UserError:
        """Return a UserError that names the address."""
        return UserError(self.option, f"{self.prefix}{self.base_url}", problem, hint)

    def unavailable(self, reason: object) -> UserError:
        """Return the UserError for a server whose replies cannot be used."""
        hint = f"check that the server is running, serves {self.model} and accepts these settings, then repeat the "
        return self.error(f"no usable reply ({reason})", hint + "command; finished requests are cached")

    def connect(self) -> Any:
        """Return the openai client, a context manager; raise a UserError if the key or the address is unusable."""
        from openai import DefaultHttpxClient, OpenAI

        for name in ("httpx", "httpx2", "openai"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # The client requires a key even if the server does not. A redirect would send prompts to another server.
        key = self._key() or "none"
        http = DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [_limit_size]})
        limits: dict[str, Any] = {"timeout": self.timeout, "max_retries": self.max_retries}
        try:
            return OpenAI(base_url=self.base_url, api_key=key, http_client=http, **limits)
        except Exception as error:
            if type(error).__name__ != "InvalidURL":  # of httpx or httpx2
                raise
            raise self.error(f"is not a web address ({first_line(error)})", NO_ADDRESS[1]) from None

    def _key(self) -> str:
        """Return the API key for this server; "" if it gets no key."""
        name = self.key_variable
        if name is None:
            return ""
        key = os.environ.get(name, "").strip()
        if not key:
            raise self.error(f"needs an API key, and {name} is not set", f"export {name}=KEY")
        if not re.fullmatch("[!-~]+", key):
            raise UserError(name, problem="contains an invalid character", hint=f"export {name}=KEY again")
        register_secret(key)
        if urlsplit(self.base_url).scheme == "http" and not _is_loopback(self.host):
            message = "The key in %s is sent to %s unencrypted; use https:// if the server supports it"
            _warn_once(message, name, self.host)
        return key

    def check(self) -> None:
        """Raise a UserError unless the server can be reached and accepts the key; costs no tokens."""
        import openai

        quick = replace(self, timeout=CONNECT_TIMEOUT, max_retries=1)
        with quick.connect() as client:
            try:
                client.models.list()
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError) as error:
                failure = quick._as_failure(error)
                raise failure if isinstance(failure, UserError) else self.unavailable(failure) from None
            except (openai.OpenAIError, ValueError):
                return  # not all servers can list their models

    def complete(self, client: Any, messages: Sequence[dict[str, str]], **parameters: Any) -> Reply:
        """Send a chat completion request with the client from `connect`.

        The parameter `max_tokens` is sent as `max_completion_tokens` to models that reject the old name.

        Raises:
            UserError: the key, the model or the address is wrong.
            RequestFailed: the request failed for any other reason.
        """
        import openai

        try:
            return _reply(client.chat.completions.create(model=self.model, messages=messages, **parameters))
        except openai.OpenAIError as error:
            rejects_name = isinstance(error, openai.BadRequestError) and error.param == "max_tokens"
            if rejects_name and "max_tokens" in parameters:
                limit = parameters.pop("max_tokens")
                return self.complete(client, messages, **parameters, max_completion_tokens=limit)
            raise self._as_failure(error) from None
        except ValueError:  # the content type is JSON, but the content is not
            return Reply(None)

    def _as_failure(self, error: Any) -> UserError | RequestFailed:
        """Convert an error to a UserError if no further request can succeed, otherwise to RequestFailed."""
        import openai

        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            name = self.key_variable
            hint = f"set the environment variable {name} to a valid key" if name else self._key_hint
            # The server's message is left out: it may repeat parts of the key.
            return self.error(f"the server rejects the API key ({error.status_code})", hint)
        if isinstance(error, openai.NotFoundError):
            problem = f"no model {self.model}, or nothing at this address ({_reason(error)})"
            return self.error(problem, "check the model's name and the address, which usually ends in /v1")
        if isinstance(error, openai.APITimeoutError):
            return RequestFailed(f"no reply within {self.timeout:g} s")
        if type(error.__cause__).__name__ == "ConnectError":  # from httpx: no connection was made
            hint = "check the address and that the server is running"
            return self.error(f"cannot be reached ({_reason(error)})", hint)
        if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return Refused(_reason(error))
        return RequestFailed(_reason(error))


def _reply(response: Any) -> Reply:
    usage = getattr(response, "usage", None)
    tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    if not all(is_int(count) and 0 <= count <= MAX_TOKENS for count in tokens):
        tokens = [None, None]
    try:
        choice = response.choices[0]
        text = choice.message.content or _calls(choice.message)
        return Reply(utf8(text) if isinstance(text, str) else "", choice.finish_reason, *tokens)
    except (AttributeError, IndexError, TypeError):
        return Reply(None, None, *tokens)


def _calls(message: Any) -> str:
    """Format the tool calls in a reply as JSON, one per line."""
    functions = (call.function for call in getattr(message, "tool_calls", None) or [])
    return "\n".join(json.dumps({"name": f.name, "arguments": f.arguments}) for f in functions)


def _limit_size(response: Any) -> None:
    """An httpx hook that limits responses to MAX_REPLY bytes, compressed or not; reading more raises an OpenAIError."""
    from openai import OpenAIError

    read = response.iter_bytes

    def limited(chunk_size: int | None = None) -> Iterator[bytes]:
        left = MAX_REPLY
        for chunk in read(chunk_size):
            left -= len(chunk)
            if left < 0:
                response.close()
                raise OpenAIError(f"a reply of more than {MAX_REPLY >> 20} MiB")
            yield chunk

    response.iter_bytes = limited


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: Any) -> str:
    """Describe why a request failed, as one line without secrets."""
    status = getattr(error, "status_code", None)
    if status is None:
        return redact(" ".join(str(error.__cause__ or error).split()))[:200] or type(error).__name__
    body = error.body if isinstance(error.body, dict) else {}
    message = redact(" ".join(str(body.get("message") or body.get("detail") or "").split()))
    return f"{status}: {message[:200]}".rstrip(": .")


def run_concurrently(
    ask: Callable[[Item], Result | None],
    items: Sequence[Item],
    save: Callable[[Item, Result], None],
    concurrency: int,
) -> None:
    """Call `ask` for every item in a thread pool, and `save` with each result as soon as it arrives.

    Calls of `save` do not overlap; results of None are not saved. After an exception, no further items are started, and
    the results of pending requests, which are paid for, are saved before the exception is raised.
    """
    lock = Lock()

    def run(item: Item) -> None:
        result = ask(item)
        if result is not None:
            with lock:
                save(item, result)

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            futures = [pool.submit(run, item) for item in items]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
