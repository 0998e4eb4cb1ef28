"""What collecting took or would take, and what an environment can do, as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_ee.envs import ExpertTrajectory, capabilities, nondeterministic
from verl_ee.experience.branching.environment_check import EnvironmentCheck
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.collecting.prediction import Prediction
from verl_ee.experience.cost import Cost, money


def collected_text(result: CollectionResult, prices: Mapping[str, float] | None = None) -> str:
    """Return what a collection did and what it took."""
    faults = ", ".join(f"{count} {kind}" for kind, count in result.faults.items()) or "none"
    rows = [
        ["states", f"{result.states:,} ({result.lost:,} lost)"],
        ["branches", f"{result.branches:,} ({result.failed:,} failed)"],
        ["transitions", f"{result.transitions:,} ({result.reused:,} known before)"],
        ["way back", result.restore or "none needed"],
        ["faults", faults],
        *_cost(result.cost, prices),
    ]
    return aligned_left(rows)


def prediction_text(found: Prediction, prices: Mapping[str, float] | None = None) -> str:
    """Return what a collection would take."""
    if not found.states:
        return "Nothing is left to do: every outcome is known."
    note = "counted" if found.exact else "as many alternatives as are asked for in every state; there may be fewer"
    rows = [
        ["states to do", f"{found.states:,}"],
        ["way back", found.restore],
        ["workers", str(found.workers)],
        *_cost(found.cost, prices),
    ]
    return f"{aligned_left(rows)}\nenvironment steps: {note}; the rest scaled from a sample of {found.sampled} states"


def check_text(env: Any, trajectory: ExpertTrajectory, found: EnvironmentCheck) -> str:
    """Return what was found out about an environment."""
    declared = getattr(env.unwrapped, "forkable", None)
    rows = [
        ["id", trajectory.environment],
        ["version", trajectory.version],
        ["can", ", ".join(sorted(capabilities(env))) or "nothing besides reset and step"],
        ["declared nondeterministic", "yes" if nondeterministic(trajectory.environment) else "no"],
        ["declared forkable", "not declared" if declared is None else "yes" if declared else "no"],
        ["expert played twice", found.problem or f"the same {found.steps} steps both times"],
        ["reset", f"{found.reset_milliseconds:.3f} ms"],
        ["step", f"{found.step_milliseconds:.3f} ms"],
    ]
    lines = [aligned_left(rows), ""]
    for trial in found.trials:
        good = f"{trial.branches} branches, {trial.milliseconds:.3f} ms each"
        lines.append(f"{trial.restore:9} {'no: ' + trial.problem if trial.problem else good}")
    usable = next((trial.restore for trial in found.trials if not trial.problem), None)
    lines.append(f"\nway=auto uses {usable}" if found.good else "\nThis environment cannot be branched.")
    return "\n".join(lines)


def aligned_left(rows: list[list[str]]) -> str:
    """Return names and values, the values in one column."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _cost(cost: Cost, prices: Mapping[str, float] | None) -> list[list[str]]:
    rows = [
        ["environment steps", f"{cost.env_steps:,}"],
        ["resets", f"{cost.resets:,}"],
        ["prompt tokens", f"{cost.prompt_tokens:,}"],
        ["completion tokens", f"{cost.completion_tokens:,}"],
        ["seconds", f"{cost.seconds:.1f}"],
        ["bytes", f"{cost.bytes:,}"],
    ]
    return [*rows, ["money", f"{money(cost, prices):.2f}"]] if prices else rows
