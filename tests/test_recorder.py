"""Experts played through a job's own agent loops: what is learned is, token for token, what the loops send in GRPO."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from environments import expert
from omegaconf import DictConfig, OmegaConf
from test_curriculum import ENCODER
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, AgentLoopWorker
from verl.protocol import DataProto
from verl.tools.base_tool import BaseTool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.workers.rollout.replica import TokenOutput

from verl_ee.config import needs_experts, parse
from verl_ee.config.group import compose
from verl_ee.errors import ConfigError, EarlyExperienceError, ExampleError, ExampleFileError
from verl_ee.objectives.curriculum import Curriculum
from verl_ee.objectives.examples import Example
from verl_ee.objectives.loss import loss_and_metrics
from verl_ee.objectives.messages import Row
from verl_ee.objectives.recording import Recording, read_recording, write_recording
from verl_ee.trainer.batch import to_batch
from verl_ee.trainer.demonstrations import check_demonstrations, recorded
from verl_ee.trainer.recorder import RecordingClient, record

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
        )


class Server:
    """Stands in for rollout servers, apart from the recorder: answers with the ids that it was given."""

    def __init__(self, answers: Sequence[list[int]]) -> None:
        self.answers = list(answers)
        self.prompts: list[list[int]] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], **_: Any) -> TokenOutput:
        self.prompts.append(list(prompt_ids))
        return TokenOutput(token_ids=self.answers[len(self.prompts) - 1])


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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DictConfig]:
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
        yield hydra.compose("ppo_trainer", overrides)


@pytest.fixture(scope="module")
def tokenizer(config: DictConfig) -> Any:
    return AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)


def write(folder: Path, rows: Sequence[dict[str, Any]], name: str = "demonstrations.parquet") -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / name)
    return folder / name


def rollout(config: DictConfig, tokenizer: Any, path: Path) -> list[tuple[list[int], list[int], list[int]]]:
    """Return prompt, response and mask of each row as verl's own worker hands them to GRPO."""
    dataset = RLHFDataset(str(path), tokenizer, config.data)
    found = []
    for number in range(len(dataset)):
        item = dataset[number]
        answers = [tokenizer(text + END)["input_ids"] for text in item.pop("expert_responses")]
        server = Server(answers)
        batch = DataProto.from_single_dict(collate_fn([item]))
        batch.non_tensor_batch["index"] = np.array([number])
        done = asyncio.run(AgentLoopWorker(config, server).generate_sequences(batch)).batch
        assert len(server.prompts) == len(answers)
        prompt, response = (done["attention_mask"][0].bool()[part] for part in (slice(0, 200), slice(200, None)))
        found.append(
            (
                done["prompts"][0][prompt].tolist(),
                done["responses"][0][response].tolist(),
                done["response_mask"][0][response].tolist(),
            )
        )
    return found


def mask_of(example: Example) -> list[int]:
    return [1] * len(example.target) if example.learned is None else list(map(int, example.learned))


def pieces(example: Example, tokenizer: Any) -> list[tuple[bool, str]]:
    """Return the target as text, cut where the mask changes."""
    groups = groupby(zip(mask_of(example), example.target, strict=True), key=lambda pair: pair[0])
    return [(bool(learned), tokenizer.decode([token for _, token in group])) for learned, group in groups]


@pytest.mark.parametrize("rows", [TOOL_ROWS, GUESSES], ids=["verl's ToolAgentLoop", "a loop of the user's"])
def test_examples_are_what_grpo_would_be_sent(
    config: DictConfig, tokenizer: Any, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path = write(tmp_path, rows)
    found = record(path, config, 0.0)
    sent = rollout(config, tokenizer, path)
    assert [(list(item.prompt), list(item.target), mask_of(item)) for item in found.examples] == sent
    assert (len(found.examples), found.failed, found.rows) == (len(rows), [], len(rows))
    assert [item.provenance for item in found.examples] == [f"demonstration {n}, output 0" for n in range(len(rows))]
    assert {item.objective for item in found.examples} == {"imitation"}


def test_the_experts_text_is_learned_and_what_tools_say_is_not(
    config: DictConfig, tokenizer: Any, tmp_path: Path
) -> None:
    first, plain, twice = record(write(tmp_path, TOOL_ROWS), config, 0.0).examples
    assert tokenizer.decode(first.prompt) == (
        "<|im_start|>system\nTools: look <|im_end|>\n<|im_start|>user\nWhere is the box?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )

    def said(*texts: str) -> str:
        tools = "".join(f"<|im_start|>tool\n{text}<|im_end|>\n" for text in texts)
        return f"\n{tools}<|im_start|>assistant\n"

    assert pieces(first, tokenizer) == [
        (True, "I look. " + call(1) + END),
        (False, said("shelf 1: a box")),
        (True, call(2) + END),
        (False, said("shelf 2: a box")),
        (True, "It is on shelf 2." + END),
    ]
    assert plain.learned is None
    assert pieces(plain, tokenizer) == [(True, "Hello." + END)]
    assert pieces(twice, tokenizer) == [
        (True, call(1) + call(2) + END),
        (False, said("shelf 1: dust", "shelf 2: dust")),
        (True, "Dust <|im_start|> and dust." + END),
    ]
    marker = tokenizer.convert_tokens_to_ids("<tool_call>")
    assert [item.target.count(marker) for item in (first, plain, twice)] == [2, 0, 2]


def test_every_output_that_has_something_to_learn_is_an_example(
    config: DictConfig, tokenizer: Any, tmp_path: Path
) -> None:
    found = record(write(tmp_path, [row("turns", "a walk", ["left", "right"], number=2)]), config, 0.0).examples
    assert [(tokenizer.decode(item.prompt), tokenizer.decode(item.target)) for item in found] == [
        ("turn 0 of a walk", "left" + END),
        ("turn 1 of a walk", "right" + END),
    ]
    assert [item.provenance for item in found] == ["demonstration 0, output 1", "demonstration 0, output 3"]


def test_a_row_without_an_agent_is_played_by_verls_default(config: DictConfig, tokenizer: Any, tmp_path: Path) -> None:
    given = row(None, "Say hello.", ["Hello."])
    del given["agent_name"]
    (found,) = record(write(tmp_path, [given]), config, 0.0).examples
    assert tokenizer.decode(found.prompt) == "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"


def test_a_loop_that_uses_log_probabilities_gets_some(config: DictConfig, tmp_path: Path) -> None:
    path = write(tmp_path, TOOL_ROWS)
    asking = OmegaConf.merge(config, {"actor_rollout_ref": {"rollout": {"calculate_log_probs": True}}})
    assert record(path, asking, 0.0) == record(path, config, 0.0)


def answer(config: DictConfig, tokenizer: Any, text: str, ends: set[int], **sampling: Any) -> list[int]:
    client = RecordingClient(config, tokenizer, [text], ends)
    return asyncio.run(client.generate("one", prompt_ids=[5], sampling_params=sampling)).token_ids


def test_a_response_ends_where_the_model_would_stop(config: DictConfig, tokenizer: Any) -> None:
    end, close = tokenizer.convert_tokens_to_ids([END, "</tool_call>"])
    written = tokenizer(call(1))["input_ids"]
    assert answer(config, tokenizer, call(1), {end}) == [*written, end]
    assert answer(config, tokenizer, call(1) + END, {end}) == [*written, end]
    assert answer(config, tokenizer, call(1), {end, close}) == written
    assert answer(config, tokenizer, call(1), {end}, stop_token_ids=[close]) == written
    for text, stops in ((f"Hello.{END} More.", []), (call(1) + call(2), [close])):
        with pytest.raises(
            ExampleError, match=r"expert_responses\[0\] goes on after '<.*>', where the model would stop"
        ):
            answer(config, tokenizer, text, {end}, stop_token_ids=stops)


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
    "images": (row("odd", "Go.", ["a"], case="image"), ["images"]),
    "goes on": (row("odd", "Go.", [f"a{END}b"]), ["goes on after '<|im_end|>'", "End it there"]),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_demonstration_that_cannot_be_played_is_named_and_left_out(
    config: DictConfig, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    caplog.set_level(logging.WARNING, "verl.verl_ee.trainer.recorder")
    bad, words = FAILURES[case]
    found = record(write(tmp_path, [GUESSES[1], bad, GUESSES[0]]), config, 0.34)
    assert [pieces(item, tokenizer)[-1][1] for item in found.examples] == ["7" + END] * 2
    assert [item.provenance for item in found.examples] == ["demonstration 0, output 0", "demonstration 2, output 0"]
    assert found.rows == 3
    (failed,) = found.failed
    assert all(word in failed for word in ["Row 1: ", *words])
    (line,) = [item.getMessage() for item in caplog.records if item.name == "verl.verl_ee.trainer.recorder"]
    assert failed in line
    assert "left out" in line


def test_more_failures_than_the_budget_are_refused(config: DictConfig, tmp_path: Path) -> None:
    path = write(tmp_path, [GUESSES[1], FAILURES["raises"][0], GUESSES[0]])
    with pytest.raises(ExampleError) as refused:
        record(path, config, 0.3)
    words = [
        f"1 of 3 demonstrations of {path}",
        "early_experience.max_dropped=0.3",
        "Row 1: ",
        "no such room",
        "Repair",
    ]
    assert all(word in str(refused.value) for word in words)


def test_nothing_recorded_is_refused_whatever_may_fail(config: DictConfig, tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="1 of 1 demonstrations"):
        record(write(tmp_path, [FAILURES["raises"][0]]), config, 1.0)


def without(column: str) -> dict[str, Any]:
    return {key: value for key, value in GUESSES[0].items() if key != column}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([without("expert_responses")], ["has no column 'expert_responses'", "agent_name", "Add it"]),
        ([GUESSES[0], row("guessing", "Guess.", [])], ["row 1: expert_responses=[]", "at least one text"]),
        ([GUESSES[0], row("guessing", "Guess.", None)], ["row 1: expert_responses=None"]),
        ([row("guessing", "Guess.", ["3", ""])], ["row 0: expert_responses=['3', '']"]),
        ([row("guessing", "Guess.", "3")], ["row 0: expert_responses='3'"]),
        ([], ["no rows"]),
        ([GUESSES[0], row(None, "Guess.", ["7"])], ["row 1: agent_name=None", "Name the agent loop"]),
        (
            [row("gessing", "Guess.", ["7"])],
            ["row 0: unknown agent_name 'gessing'", "'guessing'", "agent_loop_config_path"],
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_row(
    config: DictConfig, tmp_path: Path, rows: list[dict[str, Any]], words: list[str]
) -> None:
    path = write(tmp_path, rows)
    if not rows:
        pq.write_table(pa.Table.from_pylist(GUESSES).slice(0, 0), path)
    with pytest.raises(ExampleFileError) as refused:
        record(path, config, 1.0)
    assert all(word in str(refused.value) for word in [str(path), *words])


def test_a_file_that_is_missing_or_of_another_kind_is_refused(config: DictConfig, tmp_path: Path) -> None:
    with pytest.raises(ExampleFileError, match=r"none\.parquet cannot be read .* Name an existing file"):
        record(tmp_path / "none.parquet", config, 0.0)
    (tmp_path / "text.parquet").write_text("{}")
    with pytest.raises(ExampleFileError, match="cannot be read as Parquet"):
        record(tmp_path / "text.parquet", config, 0.0)
    with pytest.raises(ExampleFileError, match=r"does not end in \.parquet"):
        record(write(tmp_path, GUESSES, "rows.pq"), config, 0.0)


class Half(RLHFDataset):
    """A dataset class of the user's that leaves out rows."""

    def __len__(self) -> int:
        return super().__len__() // 2


def test_a_dataset_class_that_leaves_out_rows_is_refused(config: DictConfig, tmp_path: Path) -> None:
    own = OmegaConf.merge(config, {"data": {"custom_cls": {"path": __file__, "name": "Half"}}})
    with pytest.raises(ExampleFileError, match=r"Half \(data\.custom_cls\) takes 1 of 2 rows"):
        record(write(tmp_path, GUESSES), own, 1.0)


def test_a_job_that_goes_on_learns_what_was_recorded_before(config: DictConfig, tmp_path: Path) -> None:
    path, store = write(tmp_path, [TOOL_ROWS[0], FAILURES["raises"][0]]), tmp_path / "run" / "recording.parquet"
    before = recorded(store, path, config, 0.5)
    assert len(before.examples) == len(before.failed) == 1
    looks = Shelf.looks
    assert recorded(store, path, config, 0.5) == before
    assert Shelf.looks == looks
    write(tmp_path, TOOL_ROWS)
    again = recorded(store, path, config, 0.5)
    assert len(again.examples) == 3
    assert again.examples[0] == before.examples[0]
    assert again == recorded(store, path, config, 0.5)
    with pytest.raises(ExampleFileError, match=r"nowhere\.parquet cannot be read"):
        recorded(store, tmp_path / "nowhere.parquet", config, 0.5)


@pytest.mark.parametrize("damage", ["text", "plain", "schema"])
def test_a_broken_recording_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    path = tmp_path / "recording.parquet"
    if damage == "text":
        path.write_text("not Parquet")
    elif damage == "plain":
        pq.write_table(pa.Table.from_pylist(GUESSES), path)
    else:
        with monkeypatch.context() as patch:
            patch.setattr("verl_ee.objectives.recording.VERSION", 9)
            write_recording(path, Recording([Example((1,), (2,), "imitation")], [], 1), "a")
    with pytest.raises(ExampleFileError, match=r"verl_ee\.recording/9; this" if damage == "schema" else "no recording"):
        read_recording(path, "a")


def test_only_learned_tokens_count_in_the_loss() -> None:
    """Against the mean that equation 1 has, taken token by token."""
    rows = [
        Example((1, 2, 3), (4, 5, 6, 7), "imitation", learned=(True, False, False, True)),
        Example((1,), (2, 3), "imitation", weight=0.5),
        Example((9, 8), (7,), "world_model", learned=(True,)),
    ]
    batch = to_batch(rows, 4, 0)
    masks = [row.tolist() for row in batch["loss_mask"].unbind()]
    assert masks == [[0, 0, 0, 1, 0, 0, 1], [0, 1, 1], [0, 0, 1], [0] * 7]
    generator = torch.Generator().manual_seed(3)
    log_probs = [-torch.rand(len(mask), generator=generator) for mask in masks]
    total, count = 0.0, 0
    for example, mask, values in zip([*rows, rows[0]], masks, log_probs, strict=True):
        for position in range(1, len(mask)):
            if mask[position]:
                total -= example.weight * float(values[position - 1])
                count += 1
    assert count == 5
    data = dict(batch.items()) | {"batch_num_tokens": count, "dp_size": 1}
    output = {"log_probs": torch.nested.as_nested_tensor(log_probs, layout=torch.jagged)}
    loss, metrics = loss_and_metrics(output, data)
    assert float(loss) == pytest.approx(total / count)
    assert metrics["sums/imitation/tokens"] == 4.0
    assert metrics["sums/world_model/tokens"] == 1.0


def settings(method: str, **changes: Any) -> dict[str, Any]:
    node: Any = OmegaConf.to_container(compose(method)["early_experience"], resolve=False)
    return node | changes


def test_imitation_learns_what_was_recorded_and_budgets_count_it(tmp_path: Path) -> None:
    config = parse(settings("imitation", demonstrations="d.parquet"))
    own = [Example((1,), (2,), "imitation", provenance=str(number)) for number in range(40)]
    curriculum = Curriculum(config, [expert("game", 5)], ENCODER, {}, tmp_path, 10, recorded=own)
    assert curriculum.examples("imitation").examples == own
    assert curriculum.steps("imitation", len(own)) == 2 * 3
    rows = {"world_model": [Row(({"role": "user", "content": str(n)},), "seen", "world_model") for n in range(99)]}
    node = settings("iwm", demonstrations="d.parquet", experts="e.jsonl", environment={"id": "x/X-v0", "kwargs": {}})
    node["world_model"] |= {"budget": "one_to_one"}
    both = Curriculum(parse(node), [expert("game", 5)], ENCODER, {}, tmp_path, 99, rows, own)
    assert len(both.examples("world_model").examples) == len(own)


def test_a_job_that_imitates_demonstrations_alone_needs_no_environment() -> None:
    assert not needs_experts(parse(settings("imitation", demonstrations="d.parquet")))
    for node in (settings("imitation"), settings("iwm", demonstrations="d.parquet")):
        with pytest.raises(ConfigError, match=r"environment\.id has no value"):
            parse(node)


def test_demonstrations_that_nothing_learns_are_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path, GUESSES))

    def problem(method: str, given: tuple[str, ...] = (), **changes: Any) -> str:
        node = settings(method, experts="e", environment={"id": "x/X-v0", "kwargs": {}}, **changes)
        try:
            check_demonstrations(parse(node), given)  # type: ignore[arg-type]
        except EarlyExperienceError as error:
            return str(error)
        return ""

    assert problem("iwm") == problem("iwm", demonstrations=path) == ""
    assert "rows of imitation too" in problem("iwm", ("imitation",), demonstrations=path, examples="rows.jsonl")
    stages = {"world_model": settings("iwm")["stages"]["world_model"]}
    assert "no stage learns imitation" in problem("iwm", demonstrations=path, stages=stages)
    assert "cannot be read" in problem("imitation", demonstrations=f"{tmp_path}/none.parquet")
