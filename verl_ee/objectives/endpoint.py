"""Texts from any OpenAI-compatible server: bounded retries, bounded spending, the key in the environment alone."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from verl_ee.config import EndpointConfig
from verl_ee.errors import ConfigError, ExampleError, StoreError, WriteError
from verl_ee.experience.files.atomic import write_json
from verl_ee.objectives.text_writing import TextRequest
from verl_ee.prompts.text import Message

PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before the first further attempt, doubled for each one, and the most that a server may ask for."""
FOR_NOW = (408, 409, 429)
"""Refusals that may pass, besides every error of the server's own."""
SECRET = 8
"""Characters; a shorter key is no secret but the placeholder of a server without keys."""
SCHEMA = 1


class EndpointWriter:
    """Asks a server; what it answers is kept by the caller, batch by batch.

    Attributes:
        prompt_tokens: read so far, as the server counts; where it does not say, one per byte, the most there can be.
        completion_tokens: written so far, likewise.
        stop: why nothing more is asked: the spending limit, a refusal, or too many failures in a row.
    """

    name = "endpoint"

    def __init__(
        self,
        config: EndpointConfig,
        temperature: float,
        max_tokens: int,
        ledger: Path | None = None,
        pause: float = PAUSE,
    ) -> None:
        """Prepare to ask; no request is made yet.

        Args:
            config: server, model, limits.
            temperature: of the texts.
            max_tokens: of one text; one that reaches it is cut off, and empty.
            ledger: file that keeps what was spent, so that a repeated command goes on counting; None forgets it.
            pause: seconds before the first further attempt.

        Raises:
            ConfigError: if the server's address or key cannot be used, or the client library is missing.
            StoreError: if the ledger is broken.
        """
        check_endpoint(config)
        self._config, self._temperature, self._max_tokens = config, temperature, max_tokens
        self._ledger, self._pause = ledger, pause
        self.prompt_tokens, self.completion_tokens = _read_ledger(ledger)
        self._under_way = 0
        self.stop: ExampleError | None = None
        self._failures = 0

    def write(self, requests: Sequence[TextRequest], /) -> Sequence[str | None]:
        """Return a text per request: empty where the server gave none, None where it is to be asked again."""
        return asyncio.run(self._write(requests))

    async def _write(self, requests: Sequence[TextRequest]) -> list[str | None]:
        import openai

        turns, freed = asyncio.Semaphore(self._config.concurrency), asyncio.Condition()
        client = openai.AsyncOpenAI(
            base_url=self._config.url,
            api_key=os.environ[self._config.key_variable],
            max_retries=0,
            timeout=self._config.timeout,
        )

        async def one(request: TextRequest) -> str | None:
            prompt = request.prompt
            most = _bytes(prompt) + self._max_tokens
            async with turns:
                async with freed:
                    await freed.wait_for(lambda: self.stop is not None or self._affordable())
                    self._check_spending()
                    # What is under way when the writer stops is paid for, and kept.
                    if self.stop is not None:
                        return None
                    self._under_way += most
                try:
                    return await self._ask(client, prompt)
                finally:
                    self._under_way -= most
                    async with freed:
                        freed.notify_all()

        async with client:
            texts = list(await asyncio.gather(*(one(request) for request in requests)))
        # A failed request is given up only while the server answers others.
        return texts if self.stop is not None else [text or "" for text in texts]

    async def _ask(self, client: Any, prompt: list[Message]) -> str | None:
        """Return what the server wrote, and None if it failed."""
        import openai

        try:
            answer = await self._attempts(client, prompt)
            self._count(answer, prompt)
            choice = answer.choices[0]
            text = choice.message.content if choice.finish_reason == "stop" else ""
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            self.stop = ExampleError(
                f"{self._config.url} refuses to serve model {self._config.model!r} (status {error.status_code}). Check "
                f"early_experience.reflection.endpoint and the key in ${self._config.key_variable}."
            )
            return None
        except WriteError:
            raise
        except Exception as error:  # there is no list of what a broken server makes the client raise
            self._failed(error)
            return None
        self._failures = 0
        return self._safe(text) if isinstance(text, str) else ""

    async def _attempts(self, client: Any, prompt: list[Message]) -> Any:
        """Ask until the server answers, refuses for good, or has been asked often enough."""
        import openai

        for left in range(self._config.retries, -1, -1):
            try:
                # The client's own limit is one per read: a server that trickles would keep it for ever.
                async with asyncio.timeout(self._config.timeout):
                    return await client.chat.completions.create(
                        model=self._config.model,
                        messages=prompt,
                        temperature=self._temperature,
                        max_tokens=self._max_tokens,
                    )
            except (TimeoutError, openai.APIConnectionError, openai.APIStatusError) as error:
                response = getattr(error, "response", None)
                refused = response is not None and response.status_code < 500 and response.status_code not in FOR_NOW
                if refused or not left:
                    raise
                pause = self._pause * 2 ** (self._config.retries - left) * random.uniform(0.75, 1.0)
                asked = _seconds(response.headers.get("retry-after")) if response is not None else 0.0
            await asyncio.sleep(min(max(pause, asked), LONGEST_PAUSE))
        return None

    def _count(self, answer: Any, prompt: list[Message]) -> None:
        usage = getattr(answer, "usage", None)
        read, written = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        self.prompt_tokens += read if isinstance(read, int) and read >= 0 else _bytes(prompt)
        self.completion_tokens += written if isinstance(written, int) and written >= 0 else self._max_tokens
        if self._ledger is not None:
            spent = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
            write_json(self._ledger, {"schema": SCHEMA} | spent)

    def _affordable(self) -> bool:
        """Return whether one more request cannot take more than one request's tokens above the limit."""
        limit, spent = self._config.token_limit, self.prompt_tokens + self.completion_tokens
        return limit is None or not self._under_way or spent + self._under_way < limit

    def _check_spending(self) -> None:
        limit, spent = self._config.token_limit, self.prompt_tokens + self.completion_tokens
        if self.stop is None and limit is not None and spent >= limit:
            self.stop = ExampleError(
                f"Texts have taken {spent:,} tokens from {self._config.url}, and "
                f"early_experience.reflection.endpoint.token_limit={limit:,} allows no more. What was written before "
                "is kept; raise the limit and repeat the command."
            )

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures > self._config.max_failures and self.stop is None:
            reason = (self._safe(str(error)).strip() or type(error).__name__).splitlines()[0][:200]
            self.stop = ExampleError(
                f"{self._failures} requests to {self._config.url} in a row failed, each after up to "
                f"{self._config.retries} retries; the last one said: {type(error).__name__}: {reason}. What was "
                "written before is kept; repeat the command when the server answers."
            )

    def _safe(self, text: str) -> str:
        """Return a text without what cannot be written: halves of characters, and the key of a server that echoes."""
        key = os.environ[self._config.key_variable]
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text.replace(key, "***") if len(key) >= SECRET else text


def check_endpoint(config: EndpointConfig) -> None:
    """Refuse what can be known to be wrong before the first request.

    Raises:
        ConfigError: naming the key, and the fix.
    """
    where = "early_experience.reflection.endpoint"
    for name in ("url", "model"):
        if not getattr(config, name):
            raise ConfigError(f"{where}.{name} has no value, but a writer that is 'endpoint' needs it.")
    if not _is_url(config.url):
        raise ConfigError(f"{where}.url={config.url!r} is no address. Give one like http://localhost:8000/v1.")
    key = os.environ.get(config.key_variable)
    if not key:
        raise ConfigError(
            f"The environment variable {config.key_variable} is not set ({where}.key_variable). Put the server's key "
            "into it; any text will do for a server without one."
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"The environment variable {config.key_variable} holds what cannot be part of a key, such as a space or "
            "the end of a line. Set it again."
        )
    try:
        import openai  # noqa: F401
    except ImportError:
        raise ConfigError("A writer that is 'endpoint' needs the package openai. Install it.") from None


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _bytes(prompt: list[Message]) -> int:
    """Return the most tokens that a prompt can have."""
    return sum(len(message["content"].encode("utf-8", "replace")) for message in prompt)


def _seconds(value: str | None) -> float:
    """Return what a server asks to wait, 0 where it does not say it as a number."""
    try:
        return max(float(value or 0.0), 0.0)
    except ValueError:
        return 0.0


def _read_ledger(path: Path | None) -> tuple[int, int]:
    if path is None or not path.exists():
        return 0, 0
    try:
        spent = json.loads(path.read_text(encoding="utf-8"))
        if spent["schema"] != SCHEMA:
            raise ValueError
        return int(spent["prompt_tokens"]), int(spent["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{path} does not say what was spent. Delete it to count from zero.") from None
