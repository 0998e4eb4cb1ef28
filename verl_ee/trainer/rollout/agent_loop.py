"""The agent loop of GRPO and of evaluation: it plays an environment over several turns."""

from __future__ import annotations

import asyncio
import math
from typing import NotRequired, TypedDict

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, register

from verl_ee.config import check_environment, early_experience_of
from verl_ee.experience.task_files import AGENT_NAME
from verl_ee.objectives.encoder import Encoder
from verl_ee.prompts.neutral import NeutralFormat
from verl_ee.prompts.response import without_reasoning
from verl_ee.prompts.state import EpisodeHistory, State
from verl_ee.trainer.protocols import SamplingParams, Tokenizer
from verl_ee.trainer.rollout.context import context_length
from verl_ee.trainer.rollout.environments.messages import EnvironmentFailedError
from verl_ee.trainer.rollout.environments.pool import EpisodeEnvironment, pool_of
from verl_ee.trainer.rollout.episode_outputs import EpisodeOutputs, Generated, Lengths, outputs_for
from verl_ee.trainer.rollout.episode_score import EpisodeScore
from verl_ee.trainer.rollout.sampler import sequences_at_a_time
from verl_ee.trainer.rollout.tokens import encoder_for, neutral_format


class TaskInfo(TypedDict):
    """`extra_info` of a dataset row.

    Attributes:
        task: id of the task.
        seed: seed of the environment; None or missing: the environment's own choice.
        instruction: the instruction, where the environment does not say it; None or missing: none.
    """

    task: str
    seed: NotRequired[int | None]
    instruction: NotRequired[str | None]


_SPOKEN: dict[tuple[object, ...], tuple[Tokenizer, NeutralFormat, Encoder]] = {}


@register(AGENT_NAME)
class EnvironmentAgentLoop(AgentLoopBase):
    """One episode: a prompt and a response per turn, the reward at the end.

    Every turn is a sample of its own, whose prompt is rendered from the last turns, and verl gives the score of the
    episode to each; or the episode is one sample (`early_experience.samples`). An environment that raises, hangs or
    crashes ends the episode, which keeps its turns and scores 0.
    """

    def __init__(self, *args: object, hf_model_type: str | None = None, **kwargs: object) -> None:
        super().__init__(*args, hf_model_type=hf_model_type, **kwargs)
        self._early = early_experience_of(self.config)
        check_environment(self._early)
        # More episodes would wait for the servers instead, each with an environment of its own.
        self._at_a_time = math.ceil(sequences_at_a_time(self.config) / self.rollout_config.agent.num_workers)
        self._form, self._encoder = self._spoken(hf_model_type)
        prompt, response = self.rollout_config.prompt_length, self.rollout_config.response_length
        turn = min(response, self._early.max_turn_tokens or response)
        # Only a growing sequence comes near the context: verl cuts other prompts before.
        context = context_length(self.config) if self._early.samples == "episode" else prompt + response
        self._lengths = Lengths(prompt, response, turn, context)

    def _spoken(self, hf_model_type: str | None) -> tuple[NeutralFormat, Encoder]:
        """Return format and encoder of the job, which are made once in a worker: verl makes a loop for each episode."""
        prompt, path = self._early.prompt, self.config.actor_rollout_ref.model.path
        key = (id(self.tokenizer), hf_model_type, repr(self.apply_chat_template_kwargs), prompt, path)
        if key not in _SPOKEN:
            encoder = encoder_for(self.tokenizer, hf_model_type, self.apply_chat_template_kwargs, prompt.date, path)
            # The tokenizer is kept with them, so that no other one gets its id.
            _SPOKEN[key] = (self.tokenizer, neutral_format(prompt, self.tokenizer), encoder)
        return _SPOKEN[key][1:]

    async def run(self, sampling_params: SamplingParams, *, extra_info: TaskInfo, **_: object) -> list[AgentLoopOutput]:
        """Play a task.

        Args:
            sampling_params: sampling parameters, as verl gives them.
            extra_info: `extra_info` of the dataset row.

        Returns:
            One output per turn or per episode, with the actions that were executed as `executed_actions` in its
            `extra_fields`; the last one carries the score and, under `reward_extra_info`, the numbers of
            `EpisodeScore`.
        """
        task, seed, instruction = extra_info["task"], extra_info.get("seed"), extra_info.get("instruction") or ""
        score = EpisodeScore(str(task), self._early.episode_reward)
        made = self._outputs()
        try:
            async with pool_of(self._early, self._at_a_time).episode(task, None if seed is None else int(seed)) as env:
                await self._play(env, instruction, sampling_params, score, made)
        except EnvironmentFailedError as failure:
            score.fail(str(failure))
        outputs = made.finished() or await self._unplayed(instruction, sampling_params)
        if score.failed:
            for output in outputs:
                # Nobody knows what they would have led to, so nothing is learned from them.
                output.response_mask = [0] * len(output.response_ids)
        return _scored(outputs, score)

    async def _play(
        self,
        env: EpisodeEnvironment,
        instruction: str,
        sampling_params: SamplingParams,
        score: EpisodeScore,
        made: EpisodeOutputs,
    ) -> None:
        """Play an episode to its end, and add what it gives to `score` and `made`."""
        seen = env.first
        history = EpisodeHistory(instruction if seen.task is None else seen.task, self._early.history_length)
        while not seen.ended and score.turns < self._early.max_turns:
            state = history.state(seen.observation, seen.admissible_actions)
            prompt = await asyncio.to_thread(self._asked, made, state)
            if prompt is None:
                # verl would cut the prompt; the episode ends instead, without success, and is counted.
                score.over_length = True
                break
            generated = await self._generate(made.request_id, prompt, sampling_params, self._early.max_turn_tokens)
            response = self._encoder.text(made.add(generated))
            read = self._form.read(response, state.admissible_actions)
            action = without_reasoning(response)[1].strip() if read.action is None else read.action
            thought = "" if read.action is None else read.thought
            made.executed(action)
            score.act(read.action is not None)
            history.act(state, action, thought)
            seen = await env.step(action)
            score.add(seen)

    def _asked(self, made: EpisodeOutputs, state: State) -> list[int] | None:
        return made.prompt(self._form.policy_prompt(state))

    async def _unplayed(self, instruction: str, sampling_params: SamplingParams) -> list[AgentLoopOutput]:
        """Return the outputs of an episode that never began, from which nothing is learned.

        verl needs one for each episode. The token comes from the server, so that the output has every field that those
        of other episodes have: log-probabilities, and the version of the weights.
        """
        made = self._outputs()
        prompt = self._asked(made, State(instruction, (), "")) or []
        prompt = prompt[: self.rollout_config.prompt_length]
        made.add(await self._generate(made.request_id, prompt, sampling_params, 1))
        (output,) = made.finished()
        if not output.response_ids:
            # An aborted request gives none.
            output.response_ids = [min(self._encoder.ends)]
            output.response_logprobs = [0.0] if sampling_params.get("logprobs") else None
        output.prompt_ids = prompt
        output.response_mask = [0] * len(output.response_ids)
        return [output]

    def _outputs(self) -> EpisodeOutputs:
        return outputs_for(self._early, self._encoder, self._lengths)

    async def _generate(
        self, request_id: str, prompt: list[int], sampling_params: SamplingParams, most: int | None
    ) -> Generated:
        """Have at most `most` tokens generated behind a prompt."""
        limit = {} if most is None else {"max_tokens": most}
        generated: Generated = await self.server_manager.generate(
            request_id=request_id, prompt_ids=prompt, sampling_params={**sampling_params, **limit}
        )
        return generated


def _scored(outputs: list[AgentLoopOutput], score: EpisodeScore) -> list[AgentLoopOutput]:
    """Write the score of an episode into its outputs, and return them."""
    for output in outputs:
        output.num_turns = 2 * max(score.turns, 1)
        output.extra_fields |= {"turn_scores": [], "tool_rewards": []}
    outputs[-1].reward_score = score.value
    outputs[-1].extra_fields["reward_extra_info"] = score.info()
    return outputs
