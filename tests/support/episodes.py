"""Episodes through the agent loop of GRPO and of evaluation, with a server that answers by script."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig
from support.jobs import ROOT
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

import verl_ee.plugin  # noqa: F401  (makes the flag known, as verl does)
from verl_ee.trainer.rollout.agent_loop import EnvironmentAgentLoop

VERSIONS = {"global_steps": 3, "min_global_steps": 3, "max_global_steps": 3}
"""The version of the weights at the first response, as verl's client reports it."""
PATIENCE = 60.0
"""Seconds after which episodes that do not end fail."""


class Server:
    """Stands in for verl's client: answers with the next response of the episode whose task the prompt names."""

    def __init__(self, tokenizer: Any, responses: Iterator[str]) -> None:
        self._tokenizer, self._responses = tokenizer, responses
        self.prompts: list[str] = []
        self.request_ids: list[str] = []
        self.max_tokens: list[int | None] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        self.prompts.append(self._tokenizer.decode(prompt_ids))
        self.request_ids.append(request_id)
        self.max_tokens.append(sampling_params.get("max_tokens"))
        text = "" if self.max_tokens[-1] == 1 else next(self._responses)
        ids = [*self._tokenizer.encode(text, add_special_tokens=False), self._tokenizer.eos_token_id]
        ids = ids[: self.max_tokens[-1]]
        logprobs = [-0.5 - place for place in range(len(ids))] if sampling_params.get("logprobs") else None
        # The weights move on with every response.
        step = VERSIONS["global_steps"] + len(self.prompts) - 1
        return TokenOutput(token_ids=ids, log_probs=logprobs, extra_fields=dict.fromkeys(VERSIONS, step))


class Episodes:
    """Plays episodes of one environment.

    Attributes:
        prompts: of the last `play`, as text, those of all episodes.
        request_ids: of the same requests.
    """

    def __init__(self, environment_id: str, kwargs: dict[str, Any] | None = None, **keys: Any) -> None:
        self.config = _config(environment_id, kwargs or {}, keys)
        self.tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")
        self.prompts: list[str] = []
        self.request_ids: list[str] = []

    def play(self, *episodes: Sequence[str], **extra_info: Any) -> list[list[AgentLoopOutput]]:
        """Play episodes at the same time, each with the responses that it is given."""
        servers = [Server(self.tokenizer, iter(responses)) for responses in episodes]

        async def all_of_them() -> list[list[AgentLoopOutput]]:
            return await asyncio.gather(*(self._loop(server).run(self._sampling(), **row) for server in servers))

        row = {"extra_info": {"task": "a task", **extra_info}, "global_steps": 4}
        outputs = asyncio.run(asyncio.wait_for(all_of_them(), PATIENCE))
        self.prompts = [prompt for server in servers for prompt in server.prompts]
        self.request_ids = [request_id for server in servers for request_id in server.request_ids]
        return outputs

    def text(self, output: AgentLoopOutput) -> str:
        return self.tokenizer.decode(output.response_ids, skip_special_tokens=True)

    def _loop(self, server: Server) -> EnvironmentAgentLoop:
        return EnvironmentAgentLoop(
            trainer_config=DictConfigWrap(self.config),
            server_manager=server,
            tokenizer=self.tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(self.config.data),
        )

    def _sampling(self) -> dict[str, Any]:
        return {"temperature": 1.0, "logprobs": True}


def info_of(outputs: Sequence[AgentLoopOutput]) -> dict[str, Any]:
    """Return what verl is told about an episode."""
    info: dict[str, Any] = outputs[-1].extra_fields["reward_extra_info"]
    return info


def executed(outputs: Sequence[AgentLoopOutput]) -> list[str]:
    """Return the actions of an episode that were executed."""
    return [action for output in outputs for action in output.extra_fields["executed_actions"]]


def made(marks: Path) -> list[int]:
    """Return the processes in which an environment was made, in their order."""
    names = [path.name.split() for path in marks.glob("made *")]
    return [int(pid) for _, pid, _ in sorted(names, key=lambda name: int(name[2]))]


def closed(marks: Path) -> list[int]:
    """Return the processes whose environment was closed."""
    return [int(path.name.split()[1]) for path in marks.glob("closed *")]


def _config(environment_id: str, kwargs: dict[str, Any], keys: dict[str, Any]) -> DictConfig:
    keys = {"environment.id": environment_id, "experts": "none.jsonl", "max_turns": 6, **keys}
    overrides = [
        f"early_experience.{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
        for key, value in keys.items()
    ]
    overrides += [f"+early_experience.environment.kwargs.{key}={value}" for key, value in kwargs.items()]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", ["+early_experience=imitation", *overrides])
