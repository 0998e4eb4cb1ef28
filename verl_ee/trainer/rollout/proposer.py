"""Alternatives sampled from the policy of the job, through verl's rollout servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from verl_ee.config import CollectConfig
from verl_ee.experience.proposers import Proposal, ProposalBatch, ProposalRequest, policy_proposals, visible_state
from verl_ee.objectives.examples import Encoder
from verl_ee.prompts.text import parse_response, render_policy
from verl_ee.trainer.rollout.sampler import Sampler

PROPOSER = "policy"


class PolicyProposer:
    """Samples responses in every state, as GRPO's rollouts do, and takes the actions out of them (paper, section 4.1).

    A response without an action is left out. If the expert's tool is withheld, the state does not list it.
    """

    def __init__(
        self,
        sampler: Sampler,
        encoder: Encoder,
        tokenizer: Any,
        config: CollectConfig,
        sampling: dict[str, Any],
        policy: str,
        max_prompt: int,
    ) -> None:
        """Prepare to sample.

        Args:
            sampler: of responses.
            encoder: of prompts.
            tokenizer: decodes responses.
            config: K, draws and temperatures.
            sampling: verl's sampling parameters besides the temperature.
            policy: version of the policy, kept with every alternative.
            max_prompt: tokens; a longer state gets no alternatives, as a rollout would end there.
        """
        self._sampler, self._encoder, self._tokenizer, self._config = sampler, encoder, tokenizer, config
        self._sampling, self._policy, self._max_prompt = sampling, policy, max_prompt

    def propose(self, questions: Sequence[ProposalRequest]) -> ProposalBatch:
        """Return up to K alternatives per question."""
        return asyncio.run(self._propose(questions))

    async def _propose(self, questions: Sequence[ProposalRequest]) -> ProposalBatch:
        prompts = [self._encoder.prompt(render_policy(visible_state(question, self._config))) for question in questions]
        fits = [len(prompt) <= self._max_prompt for prompt in prompts]
        drawn = iter(await self._draw([prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]))
        alternatives, written = [], 0
        for question, fit in zip(questions, fits, strict=True):
            responses = next(drawn) if fit else []
            written += sum(len(ids) for ids, _ in responses)
            found = [proposal for drawing in responses if (proposal := self._proposal(*drawing)) is not None]
            alternatives.append(policy_proposals(found, self._config, question))
        read = sum(len(prompt) * self._draws for prompt, fit in zip(prompts, fits, strict=True) if fit)
        return ProposalBatch(tuple(alternatives), read, written)

    @property
    def _draws(self) -> int:
        return self._config.draws or self._config.k

    async def _draw(self, prompts: list[list[int]]) -> list[list[tuple[list[int], dict[str, Any]]]]:
        """Return what was drawn for each prompt, draw by draw; the temperatures take turns."""
        temperatures = self._config.temperatures[: self._draws]
        turns = len(temperatures)
        asked = (
            self._sampler.sample(prompts, len(range(turn, self._draws, turns)), self._sampling | {"temperature": given})
            for turn, given in enumerate(temperatures)
        )
        found = await asyncio.gather(*asked)
        return [
            [
                (found[draw % turns][index][draw // turns], {"temperature": temperatures[draw % turns], "draw": draw})
                for draw in range(self._draws)
            ]
            for index in range(len(prompts))
        ]

    def _proposal(self, ids: list[int], sampling: dict[str, Any]) -> Proposal | None:
        action = parse_response(self._tokenizer.decode(ids, skip_special_tokens=True)).action
        return None if action is None else Proposal(action, PROPOSER, self._policy, json.dumps(sampling))
