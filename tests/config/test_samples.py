"""Samples that are whole episodes need other keys too."""

from __future__ import annotations

from typing import Any

import pytest

from verl_ee.config import parse
from verl_ee.errors import ConfigError

KEYS = {
    "method": "m",
    "environment": {"id": "verl_ee/Household-v0"},
    "experts": "experts.jsonl",
    "stages": {"imitation": {"objectives": ["imitation"], "epochs": 1, "lr": 1e-5, "batch_size": 4}},
    "samples": "episode",
}


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"max_turn_tokens": 64}, "early_experience.history_length=null"),
        ({"history_length": None}, "early_experience.max_turn_tokens=N"),
    ],
)
def test_whole_episodes_need_all_past_turns_and_a_bound_per_turn(given: dict[str, Any], missing: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse({**KEYS, **given})
    message = str(raised.value)
    assert "early_experience.samples=episode needs" in message
    assert missing in message
    assert parse({**KEYS, "history_length": None, "max_turn_tokens": 64}).samples == "episode"
