"""Alternatives sampled from the policy of the job, through verl's rollout servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from verl_ee.config import CollectConfig, PromptConfig
from verl_ee.experience.proposers import Proposal, ProposalBatch, ProposalRequest, policy_proposals, visible_state
from verl_ee.objectives.examples import Encoder
from verl_ee.prompts.response import read_response
from verl_ee.prompts.state import State
from verl_ee.prompts.text import render_policy
from verl_ee.trainer.protocols import SamplingParams, Tokenizer
from verl_ee.trainer.rollout.sampler import Sampler

PROPOSER = "policy"


@dataclass(frozen=True)
class Draw:
    """One of the responses that were sampled in a state.

    Attributes:
        token_ids: token ids of the response.
        temperature: at which it was sampled.
        number: which draw of the state it is, from 0.
    """

    token_ids: list[int]
    temperature: float
    number: int


class PolicyProposer:
    """Samples responses in every state, as GRPO's rollouts do, and takes the actions out of them (paper, section 4.1).

    A response without an action is left out. If the expert's tool is withheld, the state does not list it.

    Attributes:
        window: states for which it is asked at a time.
    """

    def __init__(
        self,
        sampler: Sampler,
        encoder: Encoder,
        tokenizer: Tokenizer,
        config: CollectConfig,
        sampling: SamplingParams,
        wording: PromptConfig,
        policy: str,
        max_prompt: int,
        window: int,
    ) -> None:
        """Prepare to sample.

        Args:
            sampler: sampler of responses.
            encoder: encoder of prompts.
            tokenizer: decodes responses.
            config: K, draws and temperatures.
            sampling: verl's sampling parameters besides the temperature.
            wording: what prompts say besides the state.
            policy: version of the policy, kept with every alternative.
            max_prompt: tokens; a longer state gets no alternatives, as a rollout would end there.
            window: states for which it is asked at a time.
        """
        self._sampler, self._encoder, self._tokenizer, self._config = sampler, encoder, tokenizer, config
        self._sampling, self._wording, self._policy, self._max_prompt = sampling, wording, policy, max_prompt
        self.window = window
        self._draws = config.draws or config.k
        self._temperatures = config.temperatures[: self._draws]

    def propose(self, requests: Sequence[ProposalRequest]) -> ProposalBatch:
        """Return up to K alternatives per request."""
        return asyncio.run(self._propose(requests))

    async def _propose(self, requests: Sequence[ProposalRequest]) -> ProposalBatch:
        states = [visible_state(request, self._config) for request in requests]
        prompts = [self._encoder.prompt(render_policy(state, self._wording)) for state in states]
        fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= self._max_prompt]
        drawn = dict(zip(fitting, await self._draw([prompts[index] for index in fitting]), strict=True))
        alternatives = tuple(
            policy_proposals(self._proposals(drawn.get(index, []), states[index]), self._config, request)
            for index, request in enumerate(requests)
        )
        prompt_tokens = self._draws * sum(len(prompts[index]) for index in fitting)
        completion_tokens = sum(len(draw.token_ids) for draws in drawn.values() for draw in draws)
        return ProposalBatch(alternatives, prompt_tokens, completion_tokens)

    async def _draw(self, prompts: list[list[int]]) -> list[list[Draw]]:
        """Return the draws of each prompt in their order: the temperatures take turns."""
        turns = range(len(self._temperatures))
        responses = await asyncio.gather(*(self._sample(prompts, turn) for turn in turns))
        draws: list[list[Draw]] = [[] for _ in prompts]
        for number in range(self._draws):
            rounds, turn = divmod(number, len(turns))
            for draws_of_prompt, responses_to_prompt in zip(draws, responses[turn], strict=True):
                draws_of_prompt.append(Draw(responses_to_prompt[rounds], self._temperatures[turn], number))
        return draws

    async def _sample(self, prompts: list[list[int]], turn: int) -> list[list[list[int]]]:
        """Return all responses to each prompt that one temperature draws in its turns."""
        count = len(range(turn, self._draws, len(self._temperatures)))
        params: SamplingParams = {**self._sampling, "temperature": self._temperatures[turn]}
        return await self._sampler.sample(prompts, count, params)

    def _proposals(self, draws: Sequence[Draw], state: State) -> list[Proposal]:
        """Return the actions of the draws that have one, in their order."""
        proposals = []
        for draw in draws:
            text = self._tokenizer.decode(draw.token_ids, skip_special_tokens=True)
            action = read_response(text, state.admissible_actions).action
            if action is not None:
                sampling = json.dumps({"temperature": draw.temperature, "draw": draw.number})
                proposals.append(Proposal(action, PROPOSER, self._policy, sampling))
        return proposals
