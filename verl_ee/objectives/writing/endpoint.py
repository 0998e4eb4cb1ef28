"""Texts from any OpenAI-compatible server: bounded retries, bounded spending, the key in the environment alone."""

from __future__ import annotations

import asyncio
import importlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from verl_ee.config import WriterConfig
from verl_ee.errors import ConfigError, ExampleError, WriteError
from verl_ee.objectives.writing.sliding_window import as_they_come
from verl_ee.objectives.writing.spending import TokenLedger
from verl_ee.objectives.writing.text_writing import NoText, RequestT, cut_off
from verl_ee.prompts.format import Message

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before the first further attempt, doubled for each one, and the most that a server may ask for."""
FOR_NOW = (408, 409, 429)
"""Refusals that may pass, besides every error of the server's own."""
FAILED = NoText("its request failed")
SECRET = 8
"""Characters; a shorter key is no secret but the placeholder of a server without keys."""


@dataclass(frozen=True)
class _Session:
    """One call of the writer.

    Attributes:
        client: client of the server.
        ended: notified whenever a request has ended.
    """

    client: openai.AsyncOpenAI
    ended: asyncio.Condition = field(default_factory=asyncio.Condition)


class EndpointWriter:
    """A language model behind a server; the caller keeps its texts as they come.

    Attributes:
        stop: why nothing more is asked: the spending limit, a refusal, or too many failures in a row.
    """

    kind = "endpoint"

    def __init__(self, config: WriterConfig, ledger: Path | None = None, pause: float = PAUSE) -> None:
        """Prepare to ask; no request is made yet.

        Args:
            config: server, limits and sampling; a text that reaches its `max_tokens` is cut off, and no text.
            ledger: file that keeps what was spent, so that a repeated command goes on counting; None forgets it.
            pause: seconds before the first further attempt.

        Raises:
            ConfigError: if the server's address or key cannot be used, or the client library is missing.
            StoreError: if the ledger is broken.
        """
        check_endpoint(config)
        self._config, self._endpoint, self._pause = config, config.endpoint, pause
        self._ledger = TokenLedger(ledger, config.endpoint.token_limit)
        self._failures_in_a_row = 0
        self.stop: ExampleError | None = None

    def write(self, requests: Sequence[RequestT], /) -> Iterator[tuple[RequestT, str | NoText]]:
        """Yield each request with its text, if the server gave one; those to be asked again are missing."""
        client = self._client()
        session, failed = _Session(client), list[RequestT]()
        window = self._endpoint.concurrency
        for request, text in as_they_come(
            requests,
            lambda request: self._write_one(session, request.prompt),
            window,
            ended=lambda: self.stop is not None,
            client=client,
        ):
            if text is None:
                failed.append(request)
                continue
            yield request, text
            if self.stop is None:
                # A failed request is given up only while the server answers others.
                yield from ((given_up, FAILED) for given_up in failed)
                failed.clear()
        if self.stop is None:
            yield from ((given_up, FAILED) for given_up in failed)

    def _client(self) -> openai.AsyncOpenAI:
        """Return a client that holds a connection for every request under way."""
        import openai

        # Versions of the client differ in the package that carries its requests: httpx or httpx2.
        transport = importlib.import_module(openai.DefaultAsyncHttpxClient.__bases__[0].__module__.partition(".")[0])
        connections = self._endpoint.concurrency
        # The client's own limit is a thousand connections; requests beyond them would wait until they time out.
        limits = transport.Limits(max_connections=connections, max_keepalive_connections=connections)
        return openai.AsyncOpenAI(
            base_url=self._endpoint.url,
            api_key=os.environ[self._endpoint.key_variable],
            max_retries=0,
            timeout=self._endpoint.timeout,
            http_client=openai.DefaultAsyncHttpxClient(limits=limits),
        )

    async def _write_one(self, session: _Session, prompt: list[Message]) -> str | NoText | None:
        """Return the text of a request when its turn comes, and None if it failed or was not made."""
        most_tokens = _byte_count(prompt) + self._config.max_tokens
        async with session.ended:
            await session.ended.wait_for(lambda: self.stop is not None or self._ledger.allows_request)
            self._check_spending()
            # Requests under way when the writer stops are paid for, and their texts are kept.
            if self.stop is not None:
                return None
            self._ledger.reserve(most_tokens)
        try:
            return await self._ask(session.client, prompt)
        finally:
            self._ledger.release(most_tokens)
            async with session.ended:
                session.ended.notify_all()

    async def _ask(self, client: openai.AsyncOpenAI, prompt: list[Message]) -> str | NoText | None:
        """Return the text of the server, and None if the request failed."""
        import openai

        try:
            answer = await self._answer(client, prompt)
            self._count(answer, prompt)
            text = self._text_of(answer)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            self.stop = ExampleError(
                f"{self._endpoint.url} refuses to serve model {self._endpoint.model!r} (status {error.status_code}). "
                f"Check {self._config.key('endpoint')} and the key in ${self._endpoint.key_variable}."
            )
            return None
        except WriteError:
            raise
        except Exception as error:  # there is no list of what a broken server makes the client raise
            self._count_failure(error)
            return None
        self._failures_in_a_row = 0
        return text

    def _text_of(self, answer: ChatCompletion) -> str | NoText:
        """Return the text of an answer, if the model ended it itself."""
        choice = answer.choices[0]
        content: object = choice.message.content
        text = self._without_key(content) if isinstance(content, str) else ""
        if choice.finish_reason == "length":
            return cut_off(self._config.max_tokens, text)
        if choice.finish_reason != "stop":
            return NoText(f"the server ended it with finish_reason={choice.finish_reason!r}", text)
        return text if isinstance(content, str) else NoText("the server's answer has no text")

    async def _answer(self, client: openai.AsyncOpenAI, prompt: list[Message]) -> ChatCompletion:
        """Ask until the server answers, refuses for good, or has been asked often enough."""
        import openai

        attempt = 0
        while True:
            try:
                # The client's own limit is one per read: a server that trickles would keep it for ever.
                async with asyncio.timeout(self._endpoint.timeout):
                    return await client.chat.completions.create(
                        model=self._endpoint.model,
                        messages=cast("list[ChatCompletionMessageParam]", prompt),
                        temperature=self._config.temperature,
                        max_tokens=self._config.max_tokens,
                    )
            except (TimeoutError, openai.APIConnectionError, openai.APIStatusError) as error:
                response = error.response if isinstance(error, openai.APIStatusError) else None
                is_final = response is not None and response.status_code < 500 and response.status_code not in FOR_NOW
                if is_final or attempt == self._endpoint.retries:
                    raise
                asked_pause = 0.0 if response is None else _seconds(response.headers.get("retry-after"))
            pause = self._pause * 2**attempt * random.uniform(0.75, 1.0)
            await asyncio.sleep(min(max(pause, asked_pause), LONGEST_PAUSE))
            attempt += 1

    def _count(self, answer: object, prompt: list[Message]) -> None:
        """Count the tokens of an answer; where the server does not say them, the most that there can be."""
        usage = getattr(answer, "usage", None)
        prompt_tokens = _token_count(usage, "prompt_tokens")
        completion_tokens = _token_count(usage, "completion_tokens")
        self._ledger.add(
            _byte_count(prompt) if prompt_tokens is None else prompt_tokens,
            self._config.max_tokens if completion_tokens is None else completion_tokens,
        )

    def _check_spending(self) -> None:
        limit = self._endpoint.token_limit
        if self.stop is None and limit is not None and self._ledger.spent.total >= limit:
            self.stop = ExampleError(
                f"Texts have taken {self._ledger.spent.total:,} tokens from {self._endpoint.url}, and "
                f"{self._config.key('endpoint.token_limit')}={limit:,} allows no more. All texts so far "
                "are kept; raise the limit and repeat the command."
            )

    def _count_failure(self, error: Exception) -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row > self._endpoint.max_failures and self.stop is None:
            message = self._without_key(str(error)).strip() or type(error).__name__
            self.stop = ExampleError(
                f"{self._failures_in_a_row} requests to {self._endpoint.url} in a row failed, each after up to "
                f"{self._endpoint.retries} retries; the last one said: {type(error).__name__}: "
                f"{message.splitlines()[0][:200]}. All texts so far are kept; repeat the command when the "
                "server answers."
            )

    def _without_key(self, text: str) -> str:
        """Return a text without what cannot be written: halves of characters, and the key of a server that echoes."""
        key = os.environ[self._endpoint.key_variable]
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text.replace(key, "***") if len(key) >= SECRET else text


def check_endpoint(config: WriterConfig) -> None:
    """Refuse an endpoint that cannot serve, as far as that shows before the first request.

    Raises:
        ConfigError: naming the key, and the fix.
    """
    endpoint = config.endpoint
    for name, value in (("url", endpoint.url), ("model", endpoint.model)):
        if not value:
            raise ConfigError(
                f"{config.key(f'endpoint.{name}')} has no value, but a writer with kind=endpoint needs it."
            )
    if not _is_url(endpoint.url):
        raise ConfigError(
            f"{config.key('endpoint.url')}={endpoint.url!r} is no address. Give one like http://localhost:8000/v1."
        )
    key = os.environ.get(endpoint.key_variable)
    if not key:
        raise ConfigError(
            f"The environment variable {endpoint.key_variable} is not set ({config.key('endpoint.key_variable')}). Put "
            "the server's key into it; any text will do for a server without one."
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"The environment variable {endpoint.key_variable} holds a character that cannot be part of a key, such as "
            "a space or the end of a line. Set it again."
        )
    try:
        import openai  # noqa: F401
    except ImportError:
        raise ConfigError("A writer with kind=endpoint needs the package openai. Install it.") from None


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _byte_count(prompt: list[Message]) -> int:
    """Return the most tokens that a prompt can have."""
    return sum(len(message["content"].encode("utf-8", "replace")) for message in prompt)


def _token_count(usage: object, name: str) -> int | None:
    """Return a number of tokens of an answer, or None if the server does not say it."""
    count = getattr(usage, name, None)
    return count if isinstance(count, int) and count >= 0 else None


def _seconds(header: str | None) -> float:
    """Return the pause that a server asks for, 0 where it does not say it as a number."""
    try:
        return max(float(header or 0.0), 0.0)
    except ValueError:
        return 0.0
