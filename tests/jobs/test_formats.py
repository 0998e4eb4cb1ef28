"""A whole job in another prompt format: what was learned is what rollouts showed, turn by turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.jobs import ROOT, Job, run_recipe
from transformers import AutoTokenizer

from verl_ee.config import PromptConfig
from verl_ee.envs import make
from verl_ee.prompts import EpisodeHistory, prompt_format
from verl_ee.trainer.rollout.tokens import encoder_for

pytestmark = pytest.mark.slow
PROMPT = "early_experience.prompt."
LISTED = 4


def test_a_growing_chat_goes_through_all_stages(tmp_path: Path) -> None:
    done = run_recipe(
        tmp_path,
        f"{PROMPT}format=react",
        f"{PROMPT}system=null",
        f"{PROMPT}instruction=null",
        f"{PROMPT}max_listed={LISTED}",
        f"{PROMPT}listed=sampled",
        # The recipe has a context of 512 tokens.
        "early_experience.history_length=1",
        f"trainer.validation_data_dir={tmp_path / 'validation'}",
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    job = Job(tmp_path, output)
    assert [stage["name"] for stage in job.json("summary.json")["stages"]] == [
        "base",
        "world_model",
        "imitation",
        "grpo",
    ]
    dumped = {
        json.loads(line)["input"]
        for path in (tmp_path / "validation").glob("*.jsonl")
        for line in path.read_text().splitlines()
    }
    assert _first_prompts() <= dumped
    assert any("assistant\nThought:" in text or "assistant\nAction:" in text for text in dumped)


def _first_prompts() -> set[str]:
    """Render the first turn of every episode of the evaluation without the job."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")
    encoder = encoder_for(tokenizer, "qwen2", {})
    form = prompt_format(PromptConfig(format="react", max_listed=LISTED, listed="sampled"))
    env, prompts = make("verl_ee/Household-v0"), set()
    for task in (f"{split}/{index}" for split in ("seen", "unseen") for index in range(16)):
        observation, info = env.reset(options={"task": task})
        state = EpisodeHistory(info["task"], 1).state(observation, info["admissible_actions"])
        prompts.add(tokenizer.decode(encoder.prompt(form.policy_prompt(state)), skip_special_tokens=True))
    return prompts
