"""A verl job with a tool and agent loops of its own, and demonstrations for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig
from support.jobs import ROOT
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.tools.base_tool import BaseTool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse

TEMPLATE = """{% if tools %}<|im_start|>system
Tools: {% for tool in tools %}{{ tool['function']['name'] }} {% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
END = "<|im_end|>"


class Shelf(BaseTool):
    """Says what is on a shelf; what is there comes from the dataset row."""

    looks = 0

    def __init__(self, config: dict[str, Any], tool_schema: OpenAIFunctionToolSchema) -> None:
        super().__init__(config, tool_schema)
        self.content: dict[str, str] = {}

    async def create(self, instance_id: str | None = None, **kwargs: Any) -> tuple[str, ToolResponse]:
        name, response = await super().create(instance_id)
        self.content[name] = kwargs["create_kwargs"]["content"]
        return name, response

    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **_: Any
    ) -> tuple[ToolResponse, float, dict[str, Any]]:
        Shelf.looks += 1
        return ToolResponse(text=f"shelf {parameters['shelf']}: {self.content[instance_id]}"), 0.0, {}


class Guessing(AgentLoopBase):
    """Guesses a number in one growing conversation; what the game says is not learned."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        prompt = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        response: list[int] = []
        mask: list[int] = []
        for turn in range(4):
            output = await self.server_manager.generate(
                request_id="guess", prompt_ids=prompt + response, sampling_params=sampling_params
            )
            response, mask = response + output.token_ids, mask + [1] * len(output.token_ids)
            guess = self.tokenizer.decode(output.token_ids, skip_special_tokens=True)
            if guess == str(kwargs["extra_info"]["number"]):
                break
            said = self.tokenizer.encode(f"\nturn {turn}: not {guess}\n", add_special_tokens=False)
            response, mask = response + said, mask + [0] * len(said)
        return AgentLoopOutput(prompt_ids=prompt, response_ids=response, response_mask=mask, metrics=AgentLoopMetrics())


class Turns(AgentLoopBase):
    """Sends every turn as a sample of its own, between two that are only read."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> list[AgentLoopOutput]:
        outputs = []
        for turn in range(kwargs["extra_info"]["number"]):
            prompt = self.tokenizer.encode(f"turn {turn} of {kwargs['raw_prompt'][0]['content']}")
            output = await self.server_manager.generate("turn", prompt_ids=prompt, sampling_params=sampling_params)
            for ids, mask in ((prompt, 0), (output.token_ids, 1)):
                outputs.append(
                    AgentLoopOutput(
                        prompt_ids=prompt, response_ids=ids, response_mask=[mask] * len(ids), metrics=AgentLoopMetrics()
                    )
                )
        return outputs


class Odd(AgentLoopBase):
    """Does what the row says, all of it wrong."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        case = kwargs["extra_info"]["case"]
        output = await self.server_manager.generate("odd", prompt_ids=[5, 6], sampling_params=sampling_params)
        ids, mask = list(output.token_ids), [1] * len(output.token_ids)
        if case == "raises":
            raise KeyError("no such room")
        if case == "hides":
            with suppress(Exception):
                await self.server_manager.generate("odd", prompt_ids=[5, 6], sampling_params=sampling_params)
        if case == "long":
            ids = (ids * 400)[: self.rollout_config.response_length]
            mask = [1] * len(ids)
        return AgentLoopOutput(
            prompt_ids=[5] * self.rollout_config.prompt_length if case == "cut" else [5, 6],
            response_ids=ids,
            response_mask={"mask": mask[:-1], "unlearned": [0] * len(mask)}.get(case, mask),
            multi_modal_data={"images": [1]} if case == "image" else None,
            metrics=AgentLoopMetrics(),
            extra_fields={"reward_extra_info": {"env_error": "it hung"}} if case == "environment" else {},
        )


def call(shelf: int) -> str:
    return f'<tool_call>\n{{"name": "look", "arguments": {{"shelf": {shelf}}}}}\n</tool_call>'


def row(agent: str | None, question: str, responses: Any, **extra: Any) -> dict[str, Any]:
    tools = {"look": {"create_kwargs": {"content": extra.pop("content", "dust")}}}
    return {
        "data_source": "test",
        "agent_name": agent,
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {"tools_kwargs": tools, "number": 7, "case": "", **extra},
        "expert_responses": responses,
    }


TOOL_ROWS = [
    row("tool_agent", "Where is the box?", ["I look. " + call(1), call(2), "It is on shelf 2."], content="a box"),
    row("tool_agent", "Say hello.", ["Hello."]),
    row("tool_agent", "Look twice at once.", [call(1) + call(2), "Dust <|im_start|> and dust."]),
]
GUESSES = [row("guessing", "Guess.", ["3", "5", "7"]), row("guessing", "Guess again.", ["7"])]


FAILURES = {
    "more turns": (row("guessing", "Guess.", ["3", "5"]), ["asks for turn 3", "expert_responses has 2", "Add"]),
    "hidden": (row("odd", "Go.", ["a"], case="hides"), ["asks for turn 2", "expert_responses has 1"]),
    "fewer turns": (row("guessing", "Guess.", ["3", "7", "8"]), ["ended after 2 of 3 responses", "Compare"]),
    "raises": (row("odd", "Go.", ["a"], case="raises"), ["raised KeyError: 'no such room'", "Repair"]),
    "cut prompt": (row("odd", "Go.", ["a"], case="cut"), ["prompt reaches 200 tokens", "data.max_prompt_length"]),
    "cut response": (row("odd", "Go.", ["a"], case="long"), ["response reaches 300 tokens", "max_response_length"]),
    "real cut": (row("tool_agent", "Go.", ["word " * 400]), ["response reaches 300 tokens"]),
    "long question": (row("tool_agent", "why " * 300, ["Hello."]), ["prompt reaches 200 tokens"]),
    "mask": (row("odd", "Go.", ["a"], case="mask"), ["response mask of 1 for 2 tokens", "Repair"]),
    "nothing learned": (row("odd", "Go.", ["a"], case="unlearned"), ["leaves nothing to learn"]),
    "environment": (row("odd", "Go.", ["a"], case="environment"), ["the environment failed: it hung", "Repair"]),
    "images": (row("odd", "Go.", ["a"], case="image"), ["images"]),
    "goes on": (row("odd", "Go.", [f"a{END}b"]), ["goes on after '<|im_end|>'", "End it there"]),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """A verl job with a tool and agent loops of its own, on a tokenizer whose template names the tools."""
    folder = tmp_path_factory.mktemp("job")
    model = folder / "model"
    model.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "examples/tiny_base/model" / name, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    tokenizer.save_pretrained(model)
    schema = {"name": "look", "description": "Look at a shelf.", "parameters": {"type": "object", "properties": {}}}
    tool = {"class_name": f"{__name__}.Shelf", "config": {"type": "native"}}
    tool["tool_schema"] = {"type": "function", "function": schema}
    (folder / "tools.yaml").write_text(json.dumps({"tools": [tool]}))
    loops = [{"name": cls.__name__.lower(), "_target_": f"{__name__}.{cls.__name__}"} for cls in (Guessing, Turns, Odd)]
    (folder / "loops.yaml").write_text(json.dumps(loops))
    overrides = [
        f"actor_rollout_ref.model.path={model}",
        "data.max_prompt_length=200",
        "data.max_response_length=300",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.multi_turn.max_parallel_calls=2",
        f"actor_rollout_ref.rollout.multi_turn.tool_config_path={folder}/tools.yaml",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder}/loops.yaml",
    ]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", overrides)


def write(folder: Path, rows: Sequence[dict[str, Any]], name: str = "demonstrations.parquet") -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / name)
    return folder / name
