"""A method that is a file outside the package: it composes with verl's own config, passes its checks, and trains."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from support.job_checks import CPU
from support.jobs import ROOT
from support.prompts import BARE_FORM
from support.stage_worlds import World, files_in

import verl_ee.plugin  # noqa: F401  (makes the flag known, as verl does)
from verl_ee.config import EarlyExperienceConfig, parse
from verl_ee.config.group import flag
from verl_ee.envs import make
from verl_ee.errors import ConfigError
from verl_ee.experience.expert_files import write_experts
from verl_ee.objectives.stage_data import StageData
from verl_ee.trainer.checks.job import check_job

FOLDER = ROOT / "examples/own_method"
MODEL = ROOT / "examples/tiny_base/model"


def composed(*overrides: str) -> Any:
    """The config of verl's trainer, as `python -m verl.trainer.main_ppo` composes it."""
    given = (f"hydra.searchpath=[file://{FOLDER}]", "+early_experience=joint", *overrides)
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", list(given), return_hydra_config=True)


def typed(config: Any) -> EarlyExperienceConfig:
    return parse(OmegaConf.to_container(config.early_experience, resolve=True))  # type: ignore[arg-type]


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """What a user adds on the command line."""
    env = make("verl_ee/Household-v0")
    write_experts(tmp_path / "experts.jsonl", [env.unwrapped.expert_trajectory("train/0")])
    return [
        "early_experience.environment.id=verl_ee/Household-v0",
        f"early_experience.experts={tmp_path}/experts.jsonl",
        f"actor_rollout_ref.model.path={MODEL}",
        "algorithm.adv_estimator=grpo",
        f"trainer.default_local_dir={tmp_path}/run",
        f"hydra.run.dir={tmp_path}/hydra",
    ]


def test_it_adds_what_the_flag_adds(given: list[str]) -> None:
    config = composed(*given)
    for key in ("trainer.v1.trainer_mode", "ray_kwargs.ray_init.runtime_env.env_vars", "hydra.callbacks"):
        assert OmegaConf.select(config, key) == OmegaConf.select(flag(), key)


def test_a_job_with_it_passes_the_checks_and_every_key_can_be_set(given: list[str]) -> None:
    early = check_job(
        composed(*given, *CPU, "early_experience.world_model.max_refused=0.5", "early_experience.max_turns=7")
    )
    assert early.method == "joint"
    assert early.collect["world_model"].k == 8
    assert (early.world_model.max_refused, early.max_turns, early.history_length) == (0.5, 7, 8)
    (stage,) = early.stages.values()
    assert stage.objectives == ("world_model", "imitation")


def test_a_mistyped_key_reaches_our_own_message(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'target'"):
        check_job(composed(*given, "early_experience.world_model.targt=raw"))


def test_what_is_required_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"early_experience\.environment\.id has no value"):
        typed(composed("early_experience.experts=e.jsonl"))


def test_its_one_stage_learns_both_objectives_in_every_part_of_the_pass(given: list[str], tmp_path: Path) -> None:
    from verl_ee.objectives.schedule import batches

    world = World(tmp_path, 8, 3)
    early = typed(composed(*given))
    stores = {"world_model": world.store}
    data = StageData(early, world.trajectories, BARE_FORM, files_in(tmp_path), stores, tmp_path)
    examples = data.examples("joint")
    assert Counter(example.objective for example in examples) == {
        "world_model": world.states,
        "imitation": world.states,
    }
    steps = data.steps("joint", len(examples))
    assert steps == 2 * (2 * world.states // 16)
    mini_batches = list(batches(early.stages["joint"], examples, steps))
    assert all(len({example.objective for example in batch}) == 2 for batch in mini_batches)


def test_it_cannot_share_steps_with_itself(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"budget='matched'.*stages\.joint"):
        typed(composed(*given, "early_experience.world_model.budget=matched"))
