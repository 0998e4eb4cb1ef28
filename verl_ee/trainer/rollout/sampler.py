"""Responses sampled from the rollout servers of a job, several for each of many prompts."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from uuid import uuid4

import aiohttp
from omegaconf import DictConfig

from verl_ee.config import early_experience_of
from verl_ee.errors import StageError
from verl_ee.trainer.actor.engines import has_adapter
from verl_ee.trainer.protocols import SamplingParams, SamplingTrainer, ServerClient

Responses = list[list[int]]
"""Token ids of the responses to one prompt."""
QUEUED = 2
"""Sequences under way per sequence that a server works on, so that none waits for the driver."""


class Sampler:
    """Samples as a rollout does: with the same servers, lengths and parameters.

    verl's client carries one response per call, in three messages of Ray, and short responses to thousands of states
    spend most of their time there. So each server gets a whole batch in one request where it can: of the completions
    API, which every vLLM replica of verl serves.
    """

    def __init__(self, client: ServerClient, addresses: Sequence[str], max_tokens: int) -> None:
        """Prepare to sample.

        Args:
            client: client of the rollout servers, which must be awake.
            addresses: host and port of servers that take batches; none: everything goes through the client.
            max_tokens: most tokens of a response.
        """
        self._client, self._addresses, self._max_tokens = client, addresses, max_tokens
        self._turn = itertools.count()

    @classmethod
    def of(cls, trainer: SamplingTrainer) -> Sampler:
        """Return the sampler of a trainer of verl whose servers have been started."""
        # The servers of separate_async come and go; its client knows which are there.
        batches = trainer.verl_mode != "separate_async" and takes_batches(trainer.config)
        addresses = trainer.llm_server_manager.get_addresses() if batches else ()
        most = int(trainer.config.actor_rollout_ref.rollout.response_length)
        turn = early_experience_of(trainer.config).max_turn_tokens
        return cls(trainer.get_llm_client(), addresses, min(most, turn or most))

    async def sample(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[Responses]:
        """Return n responses per prompt.

        Args:
            prompts: token ids.
            n: responses for each.
            params: verl's sampling parameters.

        Raises:
            StageError: if a server refuses a batch, or is gone.
        """
        if not self._addresses:
            single = [self._response(prompt, params) for prompt in prompts for _ in range(n)]
            return _in_groups(await asyncio.gather(*single), n)
        servers, turn = len(self._addresses), next(self._turn)
        batches = [prompts[first::servers] for first in range(min(servers, len(prompts)))]
        async with aiohttp.ClientSession(headers=_authorization(), timeout=aiohttp.ClientTimeout(None)) as session:
            calls = [
                # Another server is the first each time: small batches would all go to the same.
                self._responses(session, self._addresses[(turn + index) % servers], batch, n, params)
                for index, batch in enumerate(batches)
            ]
            answers = await asyncio.gather(*calls)
        return [answers[index % servers][index // servers] for index in range(len(prompts))]

    async def _response(self, prompt: list[int], params: SamplingParams) -> list[int]:
        """Return one response through verl's client."""
        # verl takes keys out of the parameters.
        own: SamplingParams = {**params, "max_tokens": self._max_tokens}
        response = await self._client.generate(request_id=uuid4().hex, prompt_ids=prompt, sampling_params=own)
        return list(response.token_ids)

    async def _responses(
        self, session: aiohttp.ClientSession, address: str, prompts: Sequence[list[int]], n: int, params: SamplingParams
    ) -> list[Responses]:
        """Return n responses to each prompt, in one request to a server."""
        # vLLM draws several responses to a prompt only where they can differ.
        copies = 1 if params["temperature"] else n
        body = {
            **params,
            "prompt": [prompt for prompt in prompts for _ in range(copies)],
            "n": n // copies,
            "max_tokens": self._max_tokens,
            "return_token_ids": True,
            "logprobs": None,
            # A default that the model's own generation config may hold, and verl's client does not use.
            "min_p": 0.0,
        }
        try:
            async with session.post(f"http://{address}/v1/completions", json=body) as reply:
                if reply.status != 200:
                    reason = (await reply.text())[:500]
                    raise StageError(f"The rollout server at {address} refused {len(prompts)} prompts: {reason}")
                choices = (await reply.json())["choices"]
        except aiohttp.ClientError as error:
            raise StageError(
                f"The rollout server at {address} is gone ({type(error).__name__}: {error}). Its log tells why; repeat "
                "the command to go on with what was collected."
            ) from error
        return _in_groups([choice["token_ids"] for choice in sorted(choices, key=lambda choice: choice["index"])], n)


def sequences_at_a_time(config: DictConfig) -> int:
    """Return how many sequences keep all rollout servers of a job busy.

    Args:
        config: config of verl.
    """
    rollout = config.actor_rollout_ref.rollout
    separate = config.trainer.v1.trainer_mode == "separate_async"
    pool = rollout if separate else config.trainer
    server = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    servers = max(1, pool.n_gpus_per_node * pool.nnodes // server)
    return int(QUEUED * servers * rollout.max_num_seqs)


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


def _in_groups(responses: Sequence[list[int]], n: int) -> list[Responses]:
    """Return responses as one list of n for each prompt."""
    return [list(responses[first : first + n]) for first in range(0, len(responses), n)]


def _authorization() -> dict[str, str]:
    key = os.environ.get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
