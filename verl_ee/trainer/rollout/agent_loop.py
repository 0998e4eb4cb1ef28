"""Plays an environment over several turns: the agent loop of GRPO and of evaluation."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import Any
from uuid import uuid4

import gymnasium
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from verl_ee.config import parse
from verl_ee.config.models import ROOT
from verl_ee.envs import make
from verl_ee.experience.task_files import AGENT_NAME
from verl_ee.prompts.state import EpisodeHistory
from verl_ee.prompts.text import parse_response, render_policy
from verl_ee.trainer.rollout.tokens import encoder_for

_idle: dict[str, list[gymnasium.Env[str, str]]] = defaultdict(list)


@register(AGENT_NAME)
class EnvironmentAgentLoop(AgentLoopBase):
    """One episode: a prompt and a response per turn, the reward at the end.

    Every turn is a sample of its own, whose prompt is rendered from the last turns. The environment's reward of the
    last step is the episode's score, and verl gives it to every turn.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._early = parse(OmegaConf.to_container(self.config[ROOT], resolve=True))  # type: ignore[arg-type]
        self._encoder = encoder_for(self.tokenizer, kwargs.get("hf_model_type"), self.apply_chat_template_kwargs)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> list[AgentLoopOutput]:
        """Play the task named in the dataset row's `extra_info`.

        Returns:
            One output per turn; the last one carries the score and, under `reward_extra_info`, the task, success
            (`acc`), the number of turns, and the shares of responses without an action and of refused actions.
        """
        key = json.dumps(self._early.environment.model_dump(), sort_keys=True)
        env = _idle[key].pop() if _idle[key] else make(self._early.environment.id, self._early.environment.kwargs)
        try:
            return await self._play(env, kwargs["extra_info"], sampling_params)
        finally:
            _idle[key].append(env)

    async def _play(
        self, env: gymnasium.Env[str, str], row: dict[str, Any], sampling_params: dict[str, Any]
    ) -> list[AgentLoopOutput]:
        options = {"task": row["task"]}
        observation, info = await asyncio.to_thread(env.reset, seed=row.get("seed"), options=options)
        episode = EpisodeHistory(info["task"], self._early.history_length)
        outputs: list[AgentLoopOutput] = []
        score, done, counts = 0.0, False, {"no_action": 0, "refused": 0, "over_length": 0}
        while not done and len(outputs) < self._early.max_turns:
            state = episode.state(observation, info.get("admissible_actions"))
            prompt = await asyncio.to_thread(self._encoder.prompt, render_policy(state))
            if len(prompt) > self.rollout_config.prompt_length and outputs:
                # verl would cut the prompt; the episode ends instead, without success, and is counted.
                counts["over_length"] = 1
                break
            outputs.append(await self._generate(prompt, sampling_params))
            response = self.tokenizer.decode(outputs[-1].response_ids, skip_special_tokens=True)
            action = parse_response(response).action
            counts["no_action"] += action is None
            action = response.strip() if action is None else action
            episode.act(observation, action)
            observation, reward, terminated, truncated, info = await asyncio.to_thread(env.step, action)
            counts["refused"] += not info.get("valid", True)
            score, done = float(reward), bool(terminated or truncated)
        return _scored(outputs, str(row["task"]), score, bool(info.get("success", score > 0.0)), counts)

    async def _generate(self, prompt: list[int], sampling_params: dict[str, Any]) -> AgentLoopOutput:
        output = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=prompt, sampling_params=sampling_params
        )
        length = self.rollout_config.response_length
        ids = list(output.token_ids)[:length]
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=ids,
            response_mask=[1] * len(ids),
            response_logprobs=list(output.log_probs)[:length] if output.log_probs else None,
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields=dict(output.extra_fields),
        )


def _scored(
    outputs: list[AgentLoopOutput], task: str, score: float, success: bool, counts: dict[str, int]
) -> list[AgentLoopOutput]:
    turns = len(outputs)
    final = outputs[-1]
    final.reward_score = score
    for output in outputs:
        output.num_turns = 2 * turns
        output.extra_fields |= {"turn_scores": [], "tool_rewards": []}
    final.extra_fields["reward_extra_info"] = {
        "task": task,
        "acc": float(success),
        "turns": turns,
        "no_action": counts["no_action"] / turns,
        "refused": counts["refused"] / turns,
        "over_length": counts["over_length"],
    }
    return outputs
