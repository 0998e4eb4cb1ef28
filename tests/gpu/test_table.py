"""The judge of `make gpu`: it accepts what a good run shows, and refuses each thing that may be wrong in a bad one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from support.gpu_jobs import stage_losses
from support.gpu_table import Recording, table, verdicts
from support.jobs import Job

LOSSES = [5.0, 2.0, 0.5]


@pytest.fixture(scope="module")
def good(job: Job) -> Recording:
    """The shared job as it ran on a CPU; values that need a card, an adapter or a second job are filled in by hand."""
    before, after, reference = job.fingerprints
    grpo = [row for row in job.rows("metrics.jsonl") if row["stage"] == "grpo"]
    losses = stage_losses(job)
    return Recording(
        card="a processor",
        policy_before=before,
        policy_after=after,
        reference=reference,
        reference_gap=grpo[0]["early_experience/reference_gap"],
        correlation=min(row["training/rollout_actor_probs_pearson_corr"] for row in grpo),
        memory_training=4e9,
        memory_most=44e9,
        losses=losses,
        losses_offloaded=[1.001 * value for value in losses],
        losses_resumed=losses,
        own_alternatives=1.2,
        adapter_change=0.3,
        merged_wrong=0,
    )


def test_a_good_recording_is_accepted(good: Recording) -> None:
    assert all(line.holds for line in verdicts(good)), table(good)
    assert "FAIL" not in table(good)


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("fingerprints", {"policy_after": "0123456789ab"}),
        ("fingerprints", {"reference": "0123456789ab"}),
        ("fingerprints", {"policy_before": "", "policy_after": "", "reference": ""}),
        ("reference gap", {"reference_gap": 1.7}),
        ("reference gap", {"reference_gap": math.nan}),
        ("correlation", {"correlation": 0.9}),
        ("memory", {"memory_training": 30e9}),
        ("memory", {"memory_training": math.nan, "memory_most": math.nan}),
        ("loss offloaded", {"losses": LOSSES, "losses_resumed": LOSSES, "losses_offloaded": [5.0, 2.0, 0.6]}),
        ("loss resumed", {"losses": LOSSES, "losses_offloaded": LOSSES, "losses_resumed": [5.0, 2.0]}),
        ("alternatives", {"own_alternatives": 0.0}),
        ("adapter", {"adapter_change": 0.0}),
        ("merged", {"merged_wrong": 3}),
    ],
)
def test_what_is_wrong_is_refused_in_its_own_line(good: Recording, line: str, change: dict[str, Any]) -> None:
    bad = replace(good, **change)
    (failed,) = [verdict for verdict in verdicts(bad) if not verdict.holds]
    assert failed.name.startswith(line) or line in failed.name
    assert table(bad).count("FAIL") == 1
