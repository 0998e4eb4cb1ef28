"""Samples that are whole episodes: refused where past turns change, whatever a policy says in them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from support.jobs import ROOT
from transformers import AutoTokenizer

from verl_ee.config import EarlyExperienceConfig, parse
from verl_ee.errors import ConfigError
from verl_ee.trainer.checks.samples import check_samples

MODEL = ROOT / "examples/tiny_base/model"
JOB: DictConfig = OmegaConf.create(
    {"actor_rollout_ref": {"model": {"path": str(MODEL)}}, "data": {"max_response_length": 512}}
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def config(samples: str = "episode", **prompt: object) -> EarlyExperienceConfig:
    stage = {"objectives": ["imitation"], "epochs": 1, "lr": 1e-5, "batch_size": 4}
    return parse(
        {
            **{"method": "m", "environment": {"id": "verl_ee/Household-v0"}, "experts": "e.jsonl"},
            **{"stages": {"imitation": stage}, "prompt": prompt, "samples": samples},
            **{"history_length": None, "max_turn_tokens": 64},
        }
    )


def test_a_chat_that_grows_is_served(tokenizer: Any) -> None:
    check_samples(JOB, config(format="react"), tokenizer)
    check_samples(JOB, config("turn", format="text"), tokenizer)


@pytest.mark.parametrize(
    "prompt", [{"format": "text"}, {"format": "tagged"}, {"format": "react", "thoughts_in_history": False}]
)
def test_a_format_that_changes_past_turns_is_refused(tokenizer: Any, prompt: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"samples=episode: the prompt format changes past turns, .*samples=turn"):
        check_samples(JOB, config(**prompt), tokenizer)


def test_a_template_that_forgets_what_was_thought_is_refused(tokenizer: Any) -> None:
    """As some do that leave a past thought out."""
    forgetting = copy.deepcopy(tokenizer)
    forgetting.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] if loop.last or m['role'] == 'user' else m['content'].split('around.')[-1] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(
        ConfigError, match=r"samples=episode: the chat template rewrites past turns: token \d+ of a chat"
    ):
        check_samples(JOB, config(format="react"), forgetting)


def test_a_turn_that_is_longer_than_an_episode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_turn_tokens=64 is more than data\.max_response_length=63"):
        check_samples(OmegaConf.merge(JOB, {"data": {"max_response_length": 63}}), config(format="react"), None)
