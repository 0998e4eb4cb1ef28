"""An episode as verl learns from it: an output per turn, or one sequence that grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.agent_loop.tool_agent_loop import SPEC_DECODE_EXTRA_KEYS

from verl_ee.config import EarlyExperienceConfig
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.episode_tokens import appended, turn_delta
from verl_ee.prompts.format import Message


@dataclass(frozen=True)
class Lengths:
    """Limits in tokens.

    Attributes:
        prompt: of the prompt that verl is given.
        response: of the response that verl is given: a turn's, or a whole episode's.
        turn: of what the policy writes in one turn.
        context: of prompt and response together.
    """

    prompt: int
    response: int
    turn: int
    context: int


class Generated(Protocol):
    """The answer of a rollout server."""

    token_ids: Sequence[int]
    log_probs: Sequence[float] | None
    extra_fields: dict[str, Any]


class EpisodeOutputs(Protocol):
    """The outputs of one episode, made turn by turn."""

    def prompt(self, messages: list[Message]) -> list[int] | None:
        """Return the token ids that a server continues, or None if there is no room for another turn."""

    @property
    def request_id(self) -> str:
        """The id of the next request; requests of one id go to one server, which has the prompt so far."""

    def add(self, generated: Generated) -> list[int]:
        """Add a response to the last prompt, and return its token ids."""

    def executed(self, action: str) -> None:
        """Note the action that was executed after the response."""

    def finished(self) -> list[AgentLoopOutput]:
        """Return the outputs."""


@dataclass
class TurnOutputs:
    """Every turn is an output of its own, whose prompt is rendered anew."""

    encoder: Encoder
    lengths: Lengths
    _prompt: list[int] = field(default_factory=list)
    _outputs: list[AgentLoopOutput] = field(default_factory=list)

    @property
    def request_id(self) -> str:
        """An id of its own: most of a prompt is new."""
        return uuid4().hex

    def prompt(self, messages: list[Message]) -> list[int] | None:
        """Return the token ids of messages; None where verl would cut them."""
        self._prompt = self.encoder.prompt(messages)
        return None if len(self._prompt) > self.lengths.prompt and self._outputs else self._prompt

    def add(self, generated: Generated) -> list[int]:
        """Add a response as an output."""
        ids = list(generated.token_ids)[: self.lengths.turn]
        logprobs = list(generated.log_probs)[: len(ids)] if generated.log_probs else None
        fields = {**generated.extra_fields, "executed_actions": []}
        self._outputs.append(_output(self._prompt, ids, [1] * len(ids), logprobs, fields))
        return ids

    def executed(self, action: str) -> None:
        """Note the action that was executed after the response."""
        self._outputs[-1].extra_fields["executed_actions"] = [action]

    def finished(self) -> list[AgentLoopOutput]:
        """Return the outputs."""
        return self._outputs


@dataclass
class GrowingOutput:
    """The whole episode is one output: generated tokens are kept, and the template's own come between the turns.

    A response that was cut off gets the token that ends it. Only generated tokens are learned. An episode ends where a
    turn could not have all of its tokens.
    """

    encoder: Encoder
    lengths: Lengths
    request_id: str = field(default_factory=lambda: uuid4().hex)
    _asked: list[Message] = field(default_factory=list)
    _prompt: list[int] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)
    _mask: list[int] = field(default_factory=list)
    _logprobs: list[float] = field(default_factory=list)
    _fields: dict[str, Any] = field(default_factory=dict)
    _actions: list[str] = field(default_factory=list)

    def prompt(self, messages: list[Message]) -> list[int] | None:
        """Return the episode so far, with what is asked now.

        Raises:
            ExampleError: if format or chat template show past turns in another way than at first.
        """
        if not self._asked:
            self._prompt = self.encoder.prompt(messages)
        else:
            answer = appended(self._asked, None, messages)
            end, added = turn_delta(self.encoder, self._asked, answer, messages)
            is_ended = bool(self._ids) and self._ids[-1] in self.encoder.ends
            added = added if is_ended else [end, *added]
            if self._room() < len(added) + self.lengths.turn:
                return None
            self._extend(added, [0] * len(added), [0.0] * len(added))
        self._asked = messages
        return [*self._prompt, *self._ids]

    def add(self, generated: Generated) -> list[int]:
        """Append a response."""
        ids = list(generated.token_ids)[: min(self.lengths.turn, self._room())]
        self._extend(ids, [1] * len(ids), list(generated.log_probs or ())[: len(ids)])
        fields = {**generated.extra_fields}
        if self._fields:
            # The weights that the first turn began with, and those that the last one ended with.
            kept = {key: value for key, value in self._fields.items() if key != "max_global_steps"}
            counted = [key for key in SPEC_DECODE_EXTRA_KEYS if key in kept and key in fields]
            counts = {key: int(kept[key]) + int(fields[key]) for key in counted}
            fields |= kept | counts
        self._fields = fields
        return ids

    def executed(self, action: str) -> None:
        """Note the action that was executed after the response."""
        self._actions.append(action)

    def finished(self) -> list[AgentLoopOutput]:
        """Return the output."""
        if not self._asked:
            return []
        logprobs = self._logprobs if len(self._logprobs) == len(self._ids) else None
        fields = {**self._fields, "executed_actions": self._actions}
        return [_output(self._prompt, self._ids, self._mask, logprobs, fields)]

    def _room(self) -> int:
        """Return the tokens that are left."""
        most = min(self.lengths.prompt + self.lengths.response, self.lengths.context) - len(self._prompt)
        return min(self.lengths.response, most) - len(self._ids)

    def _extend(self, ids: Sequence[int], mask: Sequence[int], logprobs: Sequence[float]) -> None:
        self._ids += ids
        self._mask += mask
        self._logprobs += logprobs


def outputs_for(early: EarlyExperienceConfig, encoder: Encoder, lengths: Lengths) -> EpisodeOutputs:
    """Return the empty outputs of an episode."""
    return GrowingOutput(encoder, lengths) if early.samples == "episode" else TurnOutputs(encoder, lengths)


def _output(
    prompt: list[int], ids: list[int], mask: list[int], logprobs: list[float] | None, fields: dict[str, Any]
) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=prompt,
        response_ids=ids,
        response_mask=mask,
        response_logprobs=logprobs,
        num_turns=2,
        metrics=AgentLoopMetrics(),
        extra_fields=fields,
    )
