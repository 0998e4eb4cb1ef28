"""Texts written by the policy of the job, through verl's rollout servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import uuid4

from verl_ee.config import WriterConfig
from verl_ee.errors import ExampleError
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.writing.sliding_window import as_they_come
from verl_ee.objectives.writing.text_writing import NoText, RequestT, TextRequest, cut_off
from verl_ee.trainer.protocols import SamplingParams, ServerClient, Tokenizer
from verl_ee.trainer.rollout.tokens import control_tokens

ABORTED = ("aborted", "abort")
"""Reasons of verl for a response that its server gave up."""


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
        context: int,
    ) -> None:
        """Prepare to write.

        Args:
            client: client of the rollout servers, which must be awake.
            encoder: encodes prompts, and decodes responses.
            tokenizer: tells which token ends a text.
            config: temperature and length.
            sampling: verl's sampling parameters besides these.
            window: requests under way at a time.
            context: tokens that the servers take of a prompt and its text together.
        """
        self._client, self._encoder, self._tokenizer = client, encoder, tokenizer
        self._window, self._context, self._max_tokens = window, context, config.max_tokens
        self._control = frozenset(control_tokens(tokenizer).reserved)
        self._sampling = sampling | {"temperature": config.temperature, "max_tokens": config.max_tokens}

    def write(self, requests: Sequence[RequestT], /) -> Iterator[tuple[RequestT, str | NoText]]:
        """Yield each request with its text, unless it was cut off by a limit, or its prompt is too long."""
        return as_they_come(requests, self._write, self._window)

    async def _write(self, request: TextRequest) -> str | NoText:
        prompt = self._encoder.prompt(self._encoder.neutral(request.prompt))
        room = self._context - len(prompt)
        if room < 1:
            return NoText(f"its prompt has {len(prompt)} tokens, and the servers take {self._context - 1}")
        # verl takes keys out of the parameters.
        sampling = self._sampling.copy()
        response = await self._client.generate(request_id=uuid4().hex, prompt_ids=prompt, sampling_params=sampling)
        token_ids = list(response.token_ids)
        ends_with_control = bool(token_ids) and self._is_control(token_ids[-1])
        # A tokenizer may not know the token that ends a turn as a special one.
        text = self._encoder.text(token_ids[:-1] if ends_with_control else token_ids)
        if response.stop_reason in ABORTED:
            return NoText("its server gave the response up", text)
        # A shorter response has ended by itself, with whatever token its server knows as an end: a chat model may end
        # its turn with another token than the tokenizer's eos. vLLM servers of verl do not tell one from the other, and
        # shorten the response to what a prompt leaves of the context.
        fills_its_room = len(token_ids) >= min(self._max_tokens, room) and not ends_with_control
        if response.stop_reason == "length" or fills_its_room:
            by_context = room < self._max_tokens
            return cut_off(self._context, text, "max_model_len") if by_context else cut_off(self._max_tokens, text)
        return text

    def _is_control(self, token: int) -> bool:
        return token == self._tokenizer.eos_token_id or self._tokenizer.convert_ids_to_tokens(token) in self._control
