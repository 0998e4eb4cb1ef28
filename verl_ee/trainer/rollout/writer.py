"""Texts written by the policy of the job, through verl's rollout servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import uuid4

from verl_ee.config import WriterConfig
from verl_ee.errors import ExampleError
from verl_ee.objectives.examples import Encoder
from verl_ee.objectives.writing.sliding_window import as_they_come
from verl_ee.objectives.writing.text_writing import RequestT, TextRequest
from verl_ee.trainer.protocols import SamplingParams, ServerClient, Tokenizer


class PolicyWriter:
    """Has the policy itself write, as the paper does (section 4.3)."""

    kind = "policy"
    stop: ExampleError | None = None

    def __init__(
        self,
        client: ServerClient,
        encoder: Encoder,
        tokenizer: Tokenizer,
        config: WriterConfig,
        sampling: SamplingParams,
        window: int,
        max_prompt: int | None = None,
    ) -> None:
        """Prepare to write.

        Args:
            client: client of the rollout servers, which must be awake.
            encoder: encoder of prompts.
            tokenizer: decodes the responses.
            config: temperature and length.
            sampling: verl's sampling parameters besides these.
            window: requests under way at a time.
            max_prompt: tokens of a prompt that the servers take; None: no limit.
        """
        self._client, self._encoder, self._tokenizer = client, encoder, tokenizer
        self._window, self._max_prompt = window, max_prompt
        self._sampling = sampling | {"temperature": config.temperature, "max_tokens": config.max_tokens}

    def write(self, requests: Sequence[RequestT], /) -> Iterator[tuple[RequestT, str]]:
        """Yield each request with its text: empty where it was cut off by `max_tokens`, or its prompt is too long."""
        return as_they_come(requests, self._write, self._window)

    async def _write(self, request: TextRequest) -> str:
        prompt = self._encoder.prompt(request.prompt)
        if self._max_prompt is not None and len(prompt) > self._max_prompt:
            return ""
        # verl takes keys out of the parameters.
        sampling = self._sampling.copy()
        response = await self._client.generate(request_id=uuid4().hex, prompt_ids=prompt, sampling_params=sampling)
        token_ids = list(response.token_ids)
        if not token_ids or token_ids[-1] != self._tokenizer.eos_token_id:
            return ""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)
