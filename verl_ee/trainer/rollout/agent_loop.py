"""The agent loop of GRPO and of evaluation: it plays an environment over several turns."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import NotRequired, TypedDict
from uuid import uuid4

import gymnasium
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from verl_ee.config import check_environment, early_experience_of
from verl_ee.envs import make
from verl_ee.experience.task_files import AGENT_NAME
from verl_ee.prompts.response import read_response
from verl_ee.prompts.state import EpisodeHistory
from verl_ee.prompts.text import render_policy
from verl_ee.trainer.protocols import SamplingParams
from verl_ee.trainer.rollout.tokens import encoder_for

_idle: dict[str, list[gymnasium.Env[str, str]]] = defaultdict(list)
"""Environments of this process that no episode uses, by their config as JSON."""


class TaskInfo(TypedDict):
    """`extra_info` of a dataset row.

    Attributes:
        task: id of the task.
        seed: seed of the environment; None or missing: the environment's own choice.
    """

    task: str
    seed: NotRequired[int | None]


@dataclass
class _Episode:
    """The result of an episode.

    Attributes:
        task: id of the task.
        score: the environment's reward of the last step.
        success: whether the task was solved.
        no_action: number of responses without an action.
        refused: number of actions that the environment refused.
        over_length: 1 if the episode ended because its prompt grew too long, else 0.
    """

    task: str
    score: float = 0.0
    success: bool = False
    no_action: int = 0
    refused: int = 0
    over_length: int = 0


@register(AGENT_NAME)
class EnvironmentAgentLoop(AgentLoopBase):
    """One episode: a prompt and a response per turn, the reward at the end.

    Every turn is a sample of its own, whose prompt is rendered from the last turns. The environment's reward of the
    last step is the episode's score, and verl gives it to every turn.
    """

    def __init__(self, *args: object, hf_model_type: str | None = None, **kwargs: object) -> None:
        super().__init__(*args, hf_model_type=hf_model_type, **kwargs)
        self._early = early_experience_of(self.config)
        check_environment(self._early)
        self._encoder = encoder_for(self.tokenizer, hf_model_type, self.apply_chat_template_kwargs)

    async def run(self, sampling_params: SamplingParams, *, extra_info: TaskInfo, **_: object) -> list[AgentLoopOutput]:
        """Play a task.

        Args:
            sampling_params: sampling parameters, as verl gives them.
            extra_info: `extra_info` of the dataset row.

        Returns:
            One output per turn; the last one carries the score and, under `reward_extra_info`, the task, success
            (`acc`), the number of turns, and the shares of responses without an action and of refused actions.
        """
        environment = self._early.environment
        key = json.dumps(environment.model_dump(), sort_keys=True)
        env = _idle[key].pop() if _idle[key] else make(environment.id, environment.kwargs)
        try:
            return await self._play(env, extra_info, sampling_params)
        finally:
            _idle[key].append(env)

    async def _play(
        self, env: gymnasium.Env[str, str], task_info: TaskInfo, sampling_params: SamplingParams
    ) -> list[AgentLoopOutput]:
        task = task_info["task"]
        episode = _Episode(str(task))
        observation, info = await asyncio.to_thread(env.reset, seed=task_info.get("seed"), options={"task": task})
        history = EpisodeHistory(info["task"], self._early.history_length)
        outputs: list[AgentLoopOutput] = []
        ended = False
        while not ended and len(outputs) < self._early.max_turns:
            state = history.state(observation, info.get("admissible_actions"))
            prompt = await asyncio.to_thread(self._encoder.prompt, render_policy(state, self._early.prompt))
            if len(prompt) > self.rollout_config.prompt_length and outputs:
                # verl would cut the prompt; the episode ends instead, without success, and is counted.
                episode.over_length = 1
                break
            outputs.append(await self._generate(prompt, sampling_params))
            response = self.tokenizer.decode(outputs[-1].response_ids, skip_special_tokens=True)
            action = read_response(response, state.admissible_actions).action
            episode.no_action += action is None
            action = response.strip() if action is None else action
            history.act(observation, action)
            observation, reward, terminated, truncated, info = await asyncio.to_thread(env.step, action)
            episode.refused += not info.get("valid", True)
            episode.score, ended = float(reward), bool(terminated or truncated)
        episode.success = bool(info.get("success", episode.score > 0.0))
        return _scored(outputs, episode)

    async def _generate(self, prompt: list[int], sampling_params: SamplingParams) -> AgentLoopOutput:
        output = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=prompt, sampling_params=sampling_params
        )
        length = self.rollout_config.response_length
        token_ids = list(output.token_ids)[:length]
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=token_ids,
            response_mask=[1] * len(token_ids),
            response_logprobs=list(output.log_probs)[:length] if output.log_probs else None,
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields=dict(output.extra_fields),
        )


def _scored(outputs: list[AgentLoopOutput], episode: _Episode) -> list[AgentLoopOutput]:
    """Write the result of an episode into its outputs, and return them."""
    turns = len(outputs)
    for output in outputs:
        output.num_turns = 2 * turns
        output.extra_fields |= {"turn_scores": [], "tool_rewards": []}
    last = outputs[-1]
    last.reward_score = episode.score
    last.extra_fields["reward_extra_info"] = {
        "task": episode.task,
        "acc": float(episode.success),
        "turns": turns,
        "no_action": episode.no_action / turns,
        "refused": episode.refused / turns,
        "over_length": episode.over_length,
    }
    return outputs
