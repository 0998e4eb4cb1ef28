"""Alternatives sampled from the policy of the job, through verl's rollout servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from verl_ee.config import CollectConfig
from verl_ee.experience.proposers import Proposal, Proposals, Question, policy_proposals, shown
from verl_ee.experience.rendering import parse_response, render_policy
from verl_ee.objectives.examples import Encoder

PROPOSER = "policy"


class PolicyProposer:
    """Samples responses in every state, as GRPO's rollouts do, and takes the actions out of them (paper, section 4.1).

    A response without an action is left out. If the expert's tool is withheld, the state does not list it.
    """

    def __init__(
        self,
        client: Any,
        encoder: Encoder,
        tokenizer: Any,
        config: CollectConfig,
        sampling: dict[str, Any],
        policy: str,
        max_prompt: int,
    ) -> None:
        """Prepare to sample.

        Args:
            client: verl's `LLMServerClient`; its servers must be awake.
            encoder: of prompts.
            tokenizer: decodes responses.
            config: K, draws and temperatures.
            sampling: verl's sampling parameters besides the temperature.
            policy: version of the policy, kept with every alternative.
            max_prompt: tokens; a longer state gets no alternatives, as a rollout would end there.
        """
        self._client, self._encoder, self._tokenizer, self._config = client, encoder, tokenizer, config
        self._sampling, self._policy, self._max_prompt = sampling, policy, max_prompt

    def propose(self, questions: Sequence[Question]) -> Proposals:
        """Return up to K alternatives per question."""
        return asyncio.run(self._propose(questions))

    async def _propose(self, questions: Sequence[Question]) -> Proposals:
        prompts = [self._encoder.prompt(render_policy(shown(question, self._config))) for question in questions]
        draws = range(self._config.draws or self._config.k)
        fits = [len(prompt) <= self._max_prompt for prompt in prompts]
        requests = [
            self._draw(prompt, draw) for prompt, fit in zip(prompts, fits, strict=True) if fit for draw in draws
        ]
        responses = iter(await asyncio.gather(*requests))
        alternatives, written = [], 0
        for question, fit in zip(questions, fits, strict=True):
            drawn = [next(responses) for _ in draws] if fit else []
            written += sum(len(ids) for ids, _ in drawn)
            found = [proposal for ids, sampling in drawn if (proposal := self._proposal(ids, sampling)) is not None]
            alternatives.append(policy_proposals(found, self._config, question))
        read = sum(len(prompt) * len(draws) for prompt, fit in zip(prompts, fits, strict=True) if fit)
        return Proposals(tuple(alternatives), read, written)

    async def _draw(self, prompt: list[int], draw: int) -> tuple[list[int], dict[str, Any]]:
        temperatures = self._config.temperatures
        sampling = {"temperature": temperatures[draw % len(temperatures)], "draw": draw}
        params = self._sampling | {"temperature": sampling["temperature"]}
        output = await self._client.generate(request_id=uuid4().hex, prompt_ids=prompt, sampling_params=params)
        return list(output.token_ids), sampling

    def _proposal(self, ids: list[int], sampling: dict[str, Any]) -> Proposal | None:
        action = parse_response(self._tokenizer.decode(ids, skip_special_tokens=True)).action
        return None if action is None else Proposal(action, PROPOSER, self._policy, json.dumps(sampling))
