"""Templates of users for the message that shows a state."""

from __future__ import annotations

from jinja2 import StrictUndefined, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from verl_ee.config.base import ROOT
from verl_ee.errors import ConfigError
from verl_ee.prompts.state import State

VARIABLES = ("task", "observation", "actions", "history", "steps", "step", "instruction")
"""Names that a template may use: those of `UserTemplate.render`."""


class UserTemplate:
    """A Jinja template, sandboxed: it computes text from a state, and reaches nothing else."""

    def __init__(self, text: str) -> None:
        """Compile a template.

        Raises:
            ConfigError: naming the line, if it is no template.
        """
        # Blocks leave no empty lines, as in the chat templates of transformers.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            self._template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"{ROOT}.prompt.template, line {error.lineno}: {error.message}. Write a Jinja template."
            ) from None

    def render(self, state: State, instruction: str) -> str:
        """Return the message that shows a state.

        Args:
            state: gives `task`, `observation`, `actions` (a list, or None), `steps` (how many were taken so far),
                `step` (the next one's number) and `history`: the past turns that are shown, each with `number`,
                `observation`, `action` and `thought`.
            instruction: the text that says how to answer.

        Raises:
            ConfigError: if the template names something else, or fails.
        """
        first = state.steps - len(state.history) + 1
        history = [
            {"number": number, "observation": turn.observation, "action": turn.action, "thought": turn.thought}
            for number, turn in enumerate(state.history, start=first)
        ]
        try:
            return self._template.render(
                task=state.task,
                observation=state.observation,
                actions=None if state.admissible_actions is None else list(state.admissible_actions),
                history=history,
                steps=state.steps,
                step=state.steps + 1,
                instruction=instruction,
            )
        except Exception as error:  # the template is somebody else's code
            raise ConfigError(
                f"{ROOT}.prompt.template cannot be rendered ({type(error).__name__}: {error}). It may use "
                f"{', '.join(VARIABLES)}."
            ) from None
