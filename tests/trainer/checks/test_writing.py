"""Texts of the policy that leave no room for a prompt are refused before the job starts."""

from __future__ import annotations

import pytest
from support.job_checks import check, refusal

WRITER = "early_experience.writers"


@pytest.fixture
def reflecting(overrides: list[str]) -> list[str]:
    """The command line of a job whose policy writes rationales, and has 1,024 positions."""
    return [
        "+early_experience=sr",
        *overrides[1:],
        "+actor_rollout_ref.model.override_config.max_position_embeddings=1024",
    ]


def policy(max_tokens: int, name: str = "policy") -> list[str]:
    return [f"+{WRITER}.{name}.kind=policy", f"+{WRITER}.{name}.max_tokens={max_tokens}"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # A text has as many tokens by default.
        ([], ["writers.policy.max_tokens=1024", "max_model_len is null", "1024 positions"]),
        (policy(1024), ["writers.policy.max_tokens=1024", "1024 positions"]),
        (
            [*policy(512), "actor_rollout_ref.rollout.max_model_len=512"],
            ["writers.policy.max_tokens=512", "actor_rollout_ref.rollout.max_model_len=512"],
        ),
        (
            [*policy(2000, "mine"), "early_experience.reflection.writer=mine"],
            ["early_experience.writers.mine.max_tokens=2000", "early_experience.writers.mine.kind=policy"],
        ),
    ],
)
def test_a_text_as_long_as_the_context_is_refused(reflecting: list[str], change: list[str], words: list[str]) -> None:
    message = refusal([*reflecting, *change])
    for word in (*words, "leaves no room for a prompt", "actor_rollout_ref.rollout.max_model_len"):
        assert word in message


@pytest.mark.parametrize(
    "change",
    [
        policy(1023),
        [*policy(511), "actor_rollout_ref.rollout.max_model_len=512"],
        # A writer that is not used, or is not the policy, has no such limit.
        [*policy(2000, "mine"), "early_experience.reflection.writer=template"],
        [*policy(1023), *policy(2000, "mine")],
    ],
)
def test_a_shorter_text_or_another_writer_passes(reflecting: list[str], change: list[str]) -> None:
    check([*reflecting, *change])
