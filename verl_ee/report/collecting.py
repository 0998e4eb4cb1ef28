"""Plain text on what collecting took or would take, and on what an environment can do."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium

from verl_ee.envs import ExpertTrajectory, capabilities, nondeterministic
from verl_ee.experience.branching.environment_check import EnvironmentCheck
from verl_ee.experience.collecting.collection import CollectionResult
from verl_ee.experience.collecting.prediction import Prediction
from verl_ee.experience.cost import Cost, money
from verl_ee.report.columns import aligned_left


def collected_text(result: CollectionResult, prices: Mapping[str, float] | None = None) -> str:
    """Return what a collection did and what it took.

    Args:
        result: result of the collection.
        prices: price of one unit by quantity; None leaves the money out.
    """
    faults = ", ".join(f"{count} {kind}" for kind, count in result.faults.items()) or "none"
    rows = [
        ("states", f"{result.states:,} ({result.lost:,} lost)"),
        ("branches", f"{result.branches:,} ({result.failed:,} failed)"),
        ("alternatives", result.alternatives.text),
        ("transitions", f"{result.transitions:,} ({result.reused:,} known before)"),
        ("restore", result.restore or "none needed"),
        ("faults", faults),
        *_cost_rows(result.cost, prices),
    ]
    return aligned_left(rows)


def prediction_text(prediction: Prediction, prices: Mapping[str, float] | None = None) -> str:
    """Return what a collection would take.

    Args:
        prediction: prediction of the collection.
        prices: price of one unit by quantity; None leaves the money out.
    """
    if not prediction.states:
        return "Nothing is left to do: every outcome is known."
    at_most = "as many alternatives as are asked for in every state; there may be fewer"
    rows = [
        ("states to do", f"{prediction.states:,}"),
        ("restore", prediction.restore),
        ("workers", str(prediction.workers)),
        *_cost_rows(prediction.cost, prices),
    ]
    return (
        f"{aligned_left(rows)}\nenvironment steps: {'counted' if prediction.exact else at_most}; the rest scaled from "
        f"a sample of {prediction.sampled} states"
    )


def check_text(env: gymnasium.Env[str, str], trajectory: ExpertTrajectory, check: EnvironmentCheck) -> str:
    """Return what was found out about an environment.

    Args:
        env: the environment.
        trajectory: trajectory of its expert, which was played.
        check: its outcome.
    """
    rows = [
        ("id", trajectory.environment),
        ("version", trajectory.version),
        ("can", ", ".join(sorted(capabilities(env))) or "nothing besides reset and step"),
        ("declared nondeterministic", _yes_or_no(nondeterministic(trajectory.environment))),
        ("declared forkable", _yes_or_no(getattr(env.unwrapped, "forkable", None))),
        ("expert played twice", check.problem or f"the same {check.steps} steps both times"),
        ("reset", f"{check.reset_milliseconds:.3f} ms"),
        ("step", f"{check.step_milliseconds:.3f} ms"),
    ]
    lines = [aligned_left(rows), ""]
    for trial in check.trials:
        measured = f"{trial.branches} branches, {trial.milliseconds:.3f} ms each"
        lines.append(f"{trial.restore:9} {'no: ' + trial.problem if trial.problem else measured}")
    automatic = f"restore=auto uses {check.automatic or 'none of them'}"
    lines += ["", automatic if check.good else "This environment cannot be branched."]
    return "\n".join(lines)


def _yes_or_no(declared: bool | None) -> str:
    if declared is None:
        return "not declared"
    return "yes" if declared else "no"


def _cost_rows(cost: Cost, prices: Mapping[str, float] | None) -> list[tuple[str, str]]:
    rows = [
        ("environment steps", f"{cost.env_steps:,}"),
        ("resets", f"{cost.resets:,}"),
        ("prompt tokens", f"{cost.prompt_tokens:,}"),
        ("completion tokens", f"{cost.completion_tokens:,}"),
        ("seconds", f"{cost.seconds:.1f}"),
        ("bytes", f"{cost.bytes:,}"),
    ]
    if prices:
        rows.append(("money", f"{money(cost, prices):.2f}"))
    return rows
