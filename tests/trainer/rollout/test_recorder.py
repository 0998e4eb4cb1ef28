"""Experts played through a job's own agent loops: what is learned is, token for token, what the loops send in GRPO."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from support.episode_games import MISHAPS_ID
from support.episodes import Episodes, closed, made
from support.jobs import ROOT
from support.tool_jobs import (
    END,
    FAILURES,
    GUESSES,
    TOOL_ROWS,
    call,
    config,  # noqa: F401
    row,
    write,
)
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.protocol import DataProto
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.workers.rollout.replica import TokenOutput

from verl_ee.errors import ExampleError
from verl_ee.experience.progress import read_plugin_line
from verl_ee.objectives.examples import Example
from verl_ee.trainer.rollout.recording.recorder import record


@pytest.fixture(scope="module")
def tokenizer(config: DictConfig) -> Any:
    return AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)


class Server:
    """Stands in for rollout servers, apart from the recorder: answers with the ids that it was given."""

    def __init__(self, answers: Sequence[list[int]]) -> None:
        self.answers = list(answers)
        self.prompts: list[list[int]] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], **_: Any) -> TokenOutput:
        self.prompts.append(list(prompt_ids))
        return TokenOutput(token_ids=self.answers[len(self.prompts) - 1])


def rollout(config: DictConfig, tokenizer: Any, path: Path) -> list[tuple[list[int], list[int], list[int]]]:
    """Return prompt, response and mask of each row as verl's own worker hands them to GRPO."""
    dataset = RLHFDataset(str(path), tokenizer, config.data)
    sent = []
    for number in range(len(dataset)):
        item = dataset[number]
        answers = [tokenizer(text + END)["input_ids"] for text in item.pop("expert_responses")]
        server = Server(answers)
        batch = DataProto.from_single_dict(collate_fn([item]))
        batch.non_tensor_batch["index"] = np.array([number])
        done = asyncio.run(AgentLoopWorker(config, server).generate_sequences(batch)).batch
        assert len(server.prompts) == len(answers)
        prompt, response = (done["attention_mask"][0].bool()[part] for part in (slice(0, 200), slice(200, None)))
        sent.append(
            (
                done["prompts"][0][prompt].tolist(),
                done["responses"][0][response].tolist(),
                done["response_mask"][0][response].tolist(),
            )
        )
    return sent


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
    recording = record(path, config, 0.0)
    sent = rollout(config, tokenizer, path)
    assert [(list(item.prompt), list(item.target), mask_of(item)) for item in recording.examples] == sent
    assert (len(recording.examples), recording.failed, recording.rows) == (len(rows), [], len(rows))
    assert [item.provenance for item in recording.examples] == [
        f"demonstration {n}, output 0" for n in range(len(rows))
    ]
    assert {item.objective for item in recording.examples} == {"imitation"}


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
    examples = record(write(tmp_path, [row("turns", "a walk", ["left", "right"], number=2)]), config, 0.0).examples
    assert [(tokenizer.decode(item.prompt), tokenizer.decode(item.target)) for item in examples] == [
        ("turn 0 of a walk", "left" + END),
        ("turn 1 of a walk", "right" + END),
    ]
    assert [item.provenance for item in examples] == ["demonstration 0, output 1", "demonstration 0, output 3"]


def test_a_row_without_an_agent_is_played_by_verls_default(config: DictConfig, tokenizer: Any, tmp_path: Path) -> None:
    given = row(None, "Say hello.", ["Hello."])
    del given["agent_name"]
    (example,) = record(write(tmp_path, [given]), config, 0.0).examples
    assert tokenizer.decode(example.prompt) == "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"


def test_a_loop_that_uses_log_probabilities_gets_some(config: DictConfig, tmp_path: Path) -> None:
    path = write(tmp_path, TOOL_ROWS)
    asking = OmegaConf.merge(config, {"actor_rollout_ref": {"rollout": {"calculate_log_probs": True}}})
    assert record(path, asking, 0.0) == record(path, config, 0.0)


@pytest.mark.parametrize("case", FAILURES)
def test_a_demonstration_that_cannot_be_played_is_named_and_left_out(
    config: DictConfig, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    bad, words = FAILURES[case]
    recording = record(write(tmp_path, [GUESSES[1], bad, GUESSES[0]]), config, 0.34)
    assert [pieces(item, tokenizer)[-1][1] for item in recording.examples] == ["7" + END] * 2
    assert [item.provenance for item in recording.examples] == [
        "demonstration 0, output 0",
        "demonstration 2, output 0",
    ]
    assert recording.rows == 3
    (failed,) = recording.failed
    assert all(word in failed for word in ["Row 1: ", *words])
    (warning,) = filter(None, map(read_plugin_line, capsys.readouterr().err.splitlines()))
    assert warning.level == "WARNING"
    assert failed in warning.text
    assert "left out" in warning.text


def test_the_environments_of_a_recording_end_with_it(tmp_path: Path) -> None:
    job = Episodes(MISHAPS_ID, {"marks": tmp_path}).config
    job.actor_rollout_ref.model.path, job.actor_rollout_ref.rollout.name = (
        str(ROOT / "examples/tiny_base/model"),
        "vllm",
    )
    played = {"agent_name": "early_experience", "prompt": [{"role": "user", "content": "Begin."}]}
    rows = [played | {"extra_info": {"task": task}, "expert_responses": ["Action: win"]} for task in "ab"]
    assert len(record(write(tmp_path, rows), job, 0.0).examples) == 2
    assert made(tmp_path)
    assert sorted(closed(tmp_path)) == sorted(made(tmp_path))


@pytest.mark.parametrize("samples", ["turn", "episode"])
def test_a_response_that_is_longer_than_a_turn_is_not_cut(tmp_path: Path, samples: str) -> None:
    keys = {"max_turn_tokens": 12, "samples": samples, "history_length": None, "prompt.format": "react"}
    job = Episodes(MISHAPS_ID, {"marks": tmp_path}, **keys).config
    job.actor_rollout_ref.model.path = str(ROOT / "examples/tiny_base/model")
    job.actor_rollout_ref.rollout.name = "vllm"
    played = {"agent_name": "early_experience", "prompt": [{"role": "user", "content": "Begin."}]}
    texts = (["Action: go", "Action: win"], [f"I think {'a lot and ' * 9}.\nAction: win"])
    rows = [played | {"extra_info": {"task": "a"}, "expert_responses": list(responses)} for responses in texts]
    recording = record(write(tmp_path, rows), job, 0.5)
    assert len(recording.examples) == {"turn": 2, "episode": 1}[samples]
    (failed,) = recording.failed
    assert "Row 1: expert_responses[0] has" in failed
    assert "tokens, and the agent loop takes 12. Shorten it, or raise" in failed


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
