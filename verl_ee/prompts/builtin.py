"""The part that the formats of this package share: wording, cap of listed actions, template, world model."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from verl_ee.config import PromptConfig
from verl_ee.prompts.format import Message
from verl_ee.prompts.response import ACTION_PREFIX
from verl_ee.prompts.state import State, Turn
from verl_ee.prompts.state_text import state_text
from verl_ee.prompts.template import UserTemplate

WORLD_MODEL_SYSTEM = "You are the text world. Tell what the action leads to."
OUTCOME_OPEN, OUTCOME_CLOSE = "<observation>", "</observation>"


class BuiltinFormat:
    """A format whose texts, template and cap of listed actions come from `early_experience.prompt`."""

    answer_mark: str = ACTION_PREFIX
    default_system: ClassVar[str] = "You act in a text world, one action at a time."
    default_instruction: ClassVar[str]
    default_thoughts: ClassVar[bool] = False
    """Whether past turns show thoughts, unless `prompt.thoughts_in_history` says it."""

    def __init__(self, prompt: PromptConfig) -> None:
        """Take the settings; those that are null are the format's own."""
        self._prompt = prompt
        self.system = self.default_system if prompt.system is None else prompt.system
        self.instruction = self.default_instruction if prompt.instruction is None else prompt.instruction
        own = prompt.thoughts_in_history
        self._shows_thoughts = self.default_thoughts if own is None else own
        self._template = None if prompt.template is None else UserTemplate(prompt.template)

    def world_model_prompt(self, state: State, action: str) -> list[Message]:
        """Return the messages that ask for the outcome of an action in a state.

        The system message differs from the policy's, and the answer is delimited (`outcome`), so a policy that learned
        both does not answer with an observation where an action belongs. An agent's thoughts are no part of a world.
        """
        content = f"{state_text(self._shown(state))}\n{ACTION_PREFIX} {action}"
        return [{"role": "system", "content": WORLD_MODEL_SYSTEM}, {"role": "user", "content": content}]

    def outcome(self, observation: str) -> str:
        """Return the answer to these messages."""
        return f"{OUTCOME_OPEN} {observation} {OUTCOME_CLOSE}"

    def _conversation(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages below the system message, if there is one."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *messages]

    def _shown(self, state: State) -> State:
        """Return what prompts show of a state: listed actions within the cap, and thoughts if they show any."""
        history = tuple(
            replace(
                turn,
                thought=turn.thought if self._shows_thoughts else "",
                admissible_actions=self._listed(state.task, turn),
            )
            for turn in state.history
        )
        return replace(state, history=history, admissible_actions=self._listed(state.task, state))

    def _listed(self, task: str, seen: Turn | State) -> tuple[str, ...] | None:
        """Return the listed actions that a prompt shows, in the environment's order."""
        actions, most = seen.admissible_actions, self._prompt.max_listed
        if actions is None or most is None or len(actions) <= most:
            return actions
        if most == 0:
            return None
        if self._prompt.listed == "first":
            return actions[:most]
        # The seed is the state's own, so that a state has the same list in training and in every rollout.
        digest = hashlib.sha256(json.dumps([task, seen.observation, actions]).encode()).digest()
        chosen = random.Random(digest).sample(range(len(actions)), most)
        return tuple(actions[index] for index in sorted(chosen))
