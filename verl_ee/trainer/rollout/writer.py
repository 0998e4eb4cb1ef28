"""Texts written by the policy of the job, through verl's rollout servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from verl_ee.config import ReflectionConfig
from verl_ee.errors import ExampleError
from verl_ee.objectives.examples import Encoder
from verl_ee.objectives.text_writing import TextRequest


class PolicyWriter:
    """Asks the policy itself, as the paper does (section 4.3)."""

    name = "policy"
    stop: ExampleError | None = None

    def __init__(
        self,
        client: Any,
        encoder: Encoder,
        tokenizer: Any,
        config: ReflectionConfig,
        sampling: dict[str, Any],
        max_prompt: int | None = None,
    ) -> None:
        """Prepare to ask.

        Args:
            client: verl's `LLMServerClient`; its servers must be awake.
            encoder: of prompts.
            tokenizer: decodes what was written.
            config: temperature and length.
            sampling: verl's sampling parameters besides these.
            max_prompt: tokens of a prompt that the servers take; None: whatever there is.
        """
        self._client, self._encoder, self._tokenizer, self._config = client, encoder, tokenizer, config
        self._max_prompt = max_prompt
        self._sampling = sampling | {"temperature": config.temperature, "max_tokens": config.max_tokens}

    def write(self, requests: Sequence[TextRequest], /) -> Sequence[str | None]:
        """Return a text per request: empty where it was cut off by `max_tokens`, or its prompt is too long."""

        async def all_of_them() -> list[str]:
            return await asyncio.gather(*(self._one(request) for request in requests))

        return asyncio.run(all_of_them())

    async def _one(self, request: TextRequest) -> str:
        prompt = self._encoder.prompt(request.prompt)
        if self._max_prompt is not None and len(prompt) > self._max_prompt:
            return ""
        output = await self._client.generate(
            request_id=uuid4().hex, prompt_ids=prompt, sampling_params=dict(self._sampling)
        )
        ids = list(output.token_ids)
        if not ids or ids[-1] != self._tokenizer.eos_token_id:
            return ""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
