"""The data of a job's stages: what is left out of it is said, and what nobody could learn from ends the job."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from support.jobs import ROOT
from support.rationale_worlds import GOOD
from support.recording_stages import recorded_stages
from support.stage_worlds import write_branches
from transformers import AutoTokenizer

from verl_ee.config import CollectConfig, EnvironmentConfig, parse
from verl_ee.config.group import compose
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_files import ExpertFile, load_experts, write_experts
from verl_ee.experience.provenance import provenance_of
from verl_ee.experience.store import read_branches
from verl_ee.objectives.reflection.rationales import read_rationales
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.objectives.stage_data import StageData
from verl_ee.run.folder import RunFolder
from verl_ee.run.summary import read_summary
from verl_ee.trainer.data import data_preparation
from verl_ee.trainer.data.data_preparation import DataPreparation

SOLVED_AT = 2
MODEL = ROOT / "examples/tiny_base/model"
TOKENIZER, POSITIONS = AutoTokenizer.from_pretrained(MODEL), 1024


@pytest.fixture
def solved_early() -> ExpertFile:
    """An expert file in which the task is solved before the third step, and steps follow."""
    trajectory = Household().expert_trajectory("train/0")
    steps = tuple(replace(step, solved=number >= SOLVED_AT) for number, step in enumerate(trajectory.steps))
    assert len(steps) > SOLVED_AT
    experts = ExpertFile(Path(), "", (replace(trajectory, steps=steps),))
    return experts


def preparation(folder: Path, experts: ExpertFile, refused: int = 0, **reflection: Any) -> DataPreparation:
    """The preparation of a job whose branches have been collected, and whose rationales a rule writes."""
    folder.mkdir(exist_ok=True)
    write_experts(folder / "experts.jsonl", experts.trajectories)
    written = load_experts(folder / "experts.jsonl", "verl_ee/Household-v0")
    provenance = provenance_of(EnvironmentConfig(id="verl_ee/Household-v0"), CollectConfig(), written)
    store = write_branches(folder / "store", experts.trajectories, 2, refused, provenance)
    keys: Any = OmegaConf.to_container(compose("sr").early_experience)
    keys |= {"experts": str(folder / "experts.jsonl"), "stores": {"reflection": str(store)}}
    keys |= {"environment": {"id": "verl_ee/Household-v0"}, "writers": {"mine": {"kind": "endpoint"}}}
    keys["reflection"] = {"writer": "template", "gates": ["length"], **reflection}
    made = recorded_stages(parse(keys), folder / "run", []).preparation
    assert isinstance(made, DataPreparation)
    return made


def prepared(folder: Path, experts: ExpertFile, refused: int = 0, **reflection: Any) -> StageData:
    return preparation(folder, experts, refused, **reflection).stage_data()


def test_what_comes_after_the_task_was_solved_is_left_out_and_counted(
    solved_early: ExpertFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    prepared(tmp_path, solved_early)
    total = len(solved_early.trajectories[0].steps)
    rationales = read_rationales(RunFolder(tmp_path / "run").files)
    assert [item.ref.step for item in rationales] == list(range(SOLVED_AT))
    left = total - SOLVED_AT
    assert f"experts: {left} of {total} steps come after the task was solved" in caplog.text
    assert f"reflect: {left} of {total} states get no rationale: {left} because the task was solved" in caplog.text


class OnceGood:
    """A writer that writes one rationale and is at a loss then."""

    kind = "endpoint"
    stop = None

    def __init__(self, *_: object) -> None:
        """A writer of a server has more to know."""

    def write(self, situations: Sequence[Situation], /) -> Iterator[tuple[Situation, str]]:
        for index, item in enumerate(situations):
            yield item, "No." if index else GOOD


def test_a_job_does_not_go_on_with_a_few_rationales_of_a_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_preparation, "EndpointWriter", OnceGood)
    trajectories = tuple(Household().expert_trajectory(f"train/{number}") for number in range(4))
    experts = ExpertFile(Path(), "", trajectories)
    count = sum(len(item.steps) for item in trajectories)
    assert count > 10
    words = rf"1 of {count} rationales passed .*early_experience.reflection.min_accepted=0.1 of them"
    with pytest.raises(ExampleError, match=words):
        prepared(tmp_path / "strict", experts, writer="mine")
    # The reason can be seen afterwards.
    reflect = read_summary(RunFolder(tmp_path / "strict" / "run").summary_path).reflect
    assert reflect is not None
    assert reflect.gates == {"accepted": 1, "length": count - 1}
    prepared(tmp_path / "lenient", experts, writer="mine", min_accepted=0.0)


def test_a_job_reflects_on_the_states_and_alternatives_that_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Situation] = []

    class Noting(OnceGood):
        def write(self, situations: Sequence[Situation], /) -> Iterator[tuple[Situation, str]]:
            asked.extend(situations)
            yield from ((item, GOOD) for item in situations)

    monkeypatch.setattr(data_preparation, "EndpointWriter", Noting)
    experts = ExpertFile(Path(), "", (Household().expert_trajectory("train/0"),))
    prepared(tmp_path, experts, refused=1, writer="mine", states=["changed"], k=2, balanced=True)
    of_expert = [branch for branch in read_branches(tmp_path / "store") if branch.proposer == "expert"]
    taken = [branch.ref for branch in of_expert if not branch.outcome.refused]
    assert 0 < len(taken) < len(of_expert)
    assert [item.ref for item in asked] == taken
    # One of each class, where the first two are of the same one.
    shown = {tuple(branch.outcome.action for branch in item.alternatives) for item in asked}
    assert shown == {("press 1", "jam 0")}


class Server:
    """Stands for a vLLM server of verl: it refuses a prompt that fills the context, and shortens responses to it."""

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        room = POSITIONS - len(prompt_ids)
        if room < 1:
            raise ValueError("need at least 1 token of headroom")
        prompt = TOKENIZER.decode(prompt_ids)
        words = TOKENIZER.encode("Dust. " * POSITIONS if "Dust" in prompt else GOOD)
        return SimpleNamespace(token_ids=words[: min(room, sampling_params["max_tokens"])], stop_reason="completed")


def test_the_context_of_a_model_limits_the_texts_of_its_policy(tmp_path: Path) -> None:
    trajectory = Household().expert_trajectory("train/0")
    first, second, third, *_ = trajectory.steps
    steps = (first, replace(second, observation="Dust. " * 50), replace(third, observation="Dust. " * POSITIONS))
    experts = ExpertFile(Path(), "", (replace(trajectory, steps=steps),))
    made = preparation(tmp_path, experts, writer="policy", gates=[])
    positions = f"+actor_rollout_ref.model.override_config.max_position_embeddings={POSITIONS}"
    overrides = [
        f"actor_rollout_ref.model.path={MODEL}",
        positions,
        "algorithm.adv_estimator=grpo",
        "trainer.n_gpus_per_node=1",
    ]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        job = hydra.compose("ppo_trainer", overrides)
    replace(made, config=job, client=Server).stage_data()
    rationales = read_rationales(RunFolder(tmp_path / "run").files)
    assert [item.accepted for item in rationales] == [True, False, False]
    assert rationales[0].text == GOOD
    assert rationales[1].reason == "has no end: cut off at max_model_len=1024"
    assert rationales[1].text.startswith("Dust. Dust.")
    assert rationales[2].reason.startswith("is empty: its prompt has")
