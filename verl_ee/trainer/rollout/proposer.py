"""Alternatives sampled from the policy of the job, through verl's rollout servers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from verl_ee.config import CollectConfig
from verl_ee.experience.policy_proposals import PolicyAlternatives, max_draws, policy_proposals, wanted
from verl_ee.experience.proposers import (
    NO_ACTION,
    POLICY,
    Proposal,
    ProposalBatch,
    ProposalRequest,
    UnusedResponse,
    visible_state,
)
from verl_ee.objectives.encoder import Encoder
from verl_ee.prompts.format import PromptFormat
from verl_ee.prompts.state import State
from verl_ee.trainer.protocols import SamplingParams
from verl_ee.trainer.rollout.sampler import Sampler


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


@dataclass
class _Sampling:
    """A state while responses are sampled in it.

    Attributes:
        request: the state.
        shown: what the policy sees there.
        prompt: token ids of its prompt.
        draws: number of responses so far.
        completion_tokens: tokens of these.
        proposals: the actions of those that have one.
        without_action: the others.
        texts: the responses of the proposals, by how these were sampled.
    """

    request: ProposalRequest
    shown: State
    prompt: list[int]
    draws: int = 0
    completion_tokens: int = 0
    proposals: list[Proposal] = field(default_factory=list)
    without_action: list[UnusedResponse] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


class PolicyProposer:
    """Samples responses in every state, as GRPO's rollouts do, and takes the actions out of them (paper, section 4.1).

    K responses are sampled in a state at first. More are sampled, K at a time, while fewer than K alternatives differ
    and fewer than `draws` responses were sampled. If the expert's tool is withheld, the state does not list it.

    Attributes:
        window: states for which it is asked at a time.
    """

    def __init__(
        self,
        sampler: Sampler,
        encoder: Encoder,
        config: CollectConfig,
        sampling: SamplingParams,
        form: PromptFormat,
        policy: str,
        max_prompt: int,
        window: int,
    ) -> None:
        """Prepare to sample.

        Args:
            sampler: sampler of responses.
            encoder: encodes prompts, and decodes responses.
            config: K, draws and temperatures.
            sampling: verl's sampling parameters besides the temperature.
            form: form of prompts and responses.
            policy: version of the policy, kept with every alternative.
            max_prompt: tokens; in a longer state the policy is not asked, as a rollout would end there.
            window: states for which it is asked at a time.
        """
        self._sampler, self._encoder, self._config = sampler, encoder, config
        self._sampling, self._form, self._policy, self._max_prompt = sampling, form, policy, max_prompt
        self.window = window
        self._temperatures = config.temperatures

    def propose(self, requests: Sequence[ProposalRequest]) -> ProposalBatch:
        """Return up to K alternatives per request, and the listed actions that are added to them."""
        return asyncio.run(self._propose(requests))

    async def _propose(self, requests: Sequence[ProposalRequest]) -> ProposalBatch:
        states = [self._begin(request) for request in requests]
        fitting = [state for state in states if len(state.prompt) <= self._max_prompt]
        while rounds := self._next_rounds(fitting):
            for (draws, size), group in rounds.items():
                await self._sample_round(group, draws, size)
        chosen = [policy_proposals(state.proposals, self._config, state.request) for state in states]
        return ProposalBatch(
            tuple(alternatives.all for alternatives in chosen),
            sum(state.draws * len(state.prompt) for state in states),
            sum(state.completion_tokens for state in states),
            tuple(state.draws for state in states),
            tuple(_unused(state, alternatives) for state, alternatives in zip(states, chosen, strict=True)),
        )

    def _begin(self, request: ProposalRequest) -> _Sampling:
        shown = visible_state(request, self._config)
        return _Sampling(request, shown, self._encoder.prompt(self._form.policy_prompt(shown)))

    def _next_rounds(self, states: Sequence[_Sampling]) -> dict[tuple[int, int], list[_Sampling]]:
        """Return the states that lack alternatives and may be sampled again.

        Returns:
            By the number of responses that they have, and the number of those to sample.
        """
        rounds: dict[tuple[int, int], list[_Sampling]] = {}
        for state in states:
            size = min(self._config.k, max_draws(self._config, state.request) - state.draws)
            own = policy_proposals(state.proposals, self._config, state.request).own
            if size > 0 and len(own) < wanted(self._config, state.request):
                rounds.setdefault((state.draws, size), []).append(state)
        return rounds

    async def _sample_round(self, states: Sequence[_Sampling], draws: int, size: int) -> None:
        """Sample `size` responses in each state, which has `draws` of them: the temperatures take turns."""
        temperatures = [self._temperatures[draw % len(self._temperatures)] for draw in range(draws, draws + size)]
        counts, prompts = Counter(temperatures), [state.prompt for state in states]
        sampled = await asyncio.gather(*(self._sample(prompts, *item) for item in counts.items()))
        for index, state in enumerate(states):
            responses = {item: iter(of_prompts[index]) for item, of_prompts in zip(counts, sampled, strict=True)}
            for draw, temperature in enumerate(temperatures, start=draws):
                self._take(state, Draw(next(responses[temperature]), temperature, draw))

    async def _sample(self, prompts: list[list[int]], temperature: float, count: int) -> list[list[list[int]]]:
        params: SamplingParams = {**self._sampling, "temperature": temperature}
        return await self._sampler.sample(prompts, count, params)

    def _take(self, state: _Sampling, draw: Draw) -> None:
        """Take the action out of a response."""
        state.draws += 1
        state.completion_tokens += len(draw.token_ids)
        text = self._encoder.text(draw.token_ids)
        action = self._form.read(text, state.shown.admissible_actions).action
        if action is None:
            state.without_action.append(UnusedResponse(text, NO_ACTION))
        else:
            sampling = json.dumps({"temperature": draw.temperature, "draw": draw.number})
            state.texts[sampling] = text
            state.proposals.append(Proposal(action, POLICY, self._policy, sampling))


def _unused(state: _Sampling, alternatives: PolicyAlternatives) -> tuple[UnusedResponse, ...]:
    """Return the responses of a state that gave no alternative."""
    others = [UnusedResponse(state.texts[proposal.sampling], reason) for proposal, reason in alternatives.unused]
    return (*state.without_action, *others)
