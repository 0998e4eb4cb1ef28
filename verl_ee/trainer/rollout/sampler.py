"""Responses sampled from the rollout servers of a job, several for each of many prompts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import aiohttp
from omegaconf import DictConfig

from verl_ee.errors import StageError
from verl_ee.trainer.actor.engines import has_adapter

Responses = list[list[int]]
"""Token ids of the responses to one prompt."""


class Sampler:
    """Samples as a rollout does: with the same servers, lengths and parameters.

    verl's client carries one response per call, in three messages of Ray, and short responses to thousands of states
    spend most of their time there. So each server gets a whole batch in one request where it can: of the completions
    API, which every vLLM replica of verl serves.
    """

    def __init__(self, client: Any, addresses: Sequence[str], max_tokens: int) -> None:
        """Prepare to sample.

        Args:
            client: verl's `LLMServerClient`; its servers must be awake.
            addresses: host and port of servers that take batches; none: everything goes through the client.
            max_tokens: of a response.
        """
        self._client, self._addresses, self._max_tokens = client, addresses, max_tokens

    @classmethod
    def of(cls, trainer: Any) -> Sampler:
        """Return the sampler of a trainer of verl whose servers have been started."""
        # The servers of separate_async come and go; its client knows which are there.
        batches = trainer.verl_mode != "separate_async" and takes_batches(trainer.config)
        addresses = trainer.llm_server_manager.get_addresses() if batches else ()
        return cls(trainer.get_llm_client(), addresses, int(trainer.config.actor_rollout_ref.rollout.response_length))

    async def sample(self, prompts: Sequence[list[int]], n: int, params: dict[str, Any]) -> list[Responses]:
        """Return n responses per prompt.

        Args:
            prompts: token ids.
            n: responses for each.
            params: verl's sampling parameters.

        Raises:
            StageError: if a server refuses a batch, or is gone.
        """
        if not self._addresses:
            found = iter(await asyncio.gather(*(self._one(prompt, params) for prompt in prompts for _ in range(n))))
            return [[next(found) for _ in range(n)] for _ in prompts]
        servers = len(self._addresses)
        parts = [prompts[first::servers] for first in range(min(servers, len(prompts)))]
        async with aiohttp.ClientSession(headers=_authorization(), timeout=aiohttp.ClientTimeout(None)) as session:
            asked = (self._batch(session, *pair, n, params) for pair in zip(self._addresses, parts, strict=False))
            answers = await asyncio.gather(*asked)
        return [answers[index % servers][index // servers] for index in range(len(prompts))]

    async def _one(self, prompt: list[int], params: dict[str, Any]) -> list[int]:
        # verl takes keys out of the parameters.
        output = await self._client.generate(
            request_id=uuid4().hex, prompt_ids=prompt, sampling_params=params | {"max_tokens": self._max_tokens}
        )
        return list(output.token_ids)

    async def _batch(
        self, session: aiohttp.ClientSession, address: str, prompts: Sequence[list[int]], n: int, params: dict[str, Any]
    ) -> list[Responses]:
        # vLLM draws several responses to a prompt only where they can differ.
        copies = 1 if params["temperature"] else n
        asked = [prompt for prompt in prompts for _ in range(copies)]
        body = params | {"prompt": asked, "n": n // copies, "max_tokens": self._max_tokens, "return_token_ids": True}
        # A default that the model's own generation config may hold, and verl's client does not use.
        body |= {"logprobs": None, "min_p": 0.0}
        try:
            async with session.post(f"http://{address}/v1/completions", json=body) as reply:
                if reply.status != 200:
                    said = (await reply.text())[:500]
                    raise StageError(f"The rollout server at {address} refused {len(prompts)} prompts: {said}")
                choices = (await reply.json())["choices"]
        except aiohttp.ClientError as error:
            raise StageError(
                f"The rollout server at {address} is gone ({type(error).__name__}: {error}). Its log tells why; repeat "
                "the command to go on with what was collected."
            ) from error
        ids = [choice["token_ids"] for choice in sorted(choices, key=lambda choice: choice["index"])]
        return [ids[at : at + n] for at in range(0, len(ids), n)]


def takes_batches(config: DictConfig) -> bool:
    """Return whether a job's servers answer a batch as verl's client would have them answer each prompt.

    They know nothing of an adapter that verl has loaded, of seeds for full determinism, nor of a response that is
    shortened to fit a context smaller than prompt and response together.
    """
    rollout = config.actor_rollout_ref.rollout
    room = int(rollout.prompt_length + rollout.response_length)
    shortened = rollout.max_model_len is not None and rollout.max_model_len < room
    split = rollout.disaggregation.enabled
    adapter = sends_adapter(config.actor_rollout_ref.model)
    return rollout.name == "vllm" and not (adapter or rollout.full_determinism or shortened or split)


def sends_adapter(model: DictConfig) -> bool:
    """Return whether verl gives its rollout servers a LoRA adapter beside the weights of the base model.

    Args:
        model: `actor_rollout_ref.model`.
    """
    return has_adapter(model) and not (model.get("lora") or {}).get("merge")


def _authorization() -> dict[str, str]:
    key = os.environ.get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
