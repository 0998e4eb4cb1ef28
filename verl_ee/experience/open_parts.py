"""The parts of an expert trajectory that its file leaves open, and how a play of the trajectory fills them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from verl_ee.envs import ExpertTrajectory, nondeterministic
from verl_ee.experience.branching.protocol import Fault, SeenState, StateRequest, StateResult, WorkUnit

INSTRUCTION, ACTIONS, SOLVED, FINAL = "instruction", "admissible_actions", "solved", "final_observation"
PARTS = (INSTRUCTION, ACTIONS, SOLVED, FINAL)
"""Keys of an expert file that may be null; an environment always gives the last one, and may give the others."""


def lasting(env_id: str) -> frozenset[str]:
    """Return which of `PARTS` a play of an environment can fill.

    No state follows the last action. Where an environment is declared nondeterministic, its outcome need not come
    again, so it stays open there.
    """
    return frozenset(PARTS) - ({FINAL} if nondeterministic(env_id) else set())


def open_parts(trajectory: ExpertTrajectory) -> frozenset[str]:
    """Return which of `PARTS` a trajectory leaves open, in one step at least."""
    is_open = {
        INSTRUCTION: trajectory.instruction is None,
        ACTIONS: any(step.admissible_actions is None for step in trajectory.steps),
        SOLVED: any(step.solved is None for step in trajectory.steps),
        FINAL: trajectory.final_observation is None,
    }
    return frozenset(part for part, value in is_open.items() if value)


def named(parts: Iterable[str]) -> str:
    """Return parts as messages show them, in one order."""
    given = set(parts)
    return ", ".join(part for part in PARTS if part in given)


def given_parts(seen: SeenState) -> frozenset[str]:
    """Return which of `PARTS` an environment gives that shows this in a state."""
    gives = {
        INSTRUCTION: seen.instruction is not None,
        ACTIONS: seen.admissible_actions is not None,
        SOLVED: seen.solved is not None,
        FINAL: True,
    }
    return frozenset(part for part, value in gives.items() if value)


def unsaid_parts(trajectory: ExpertTrajectory, seen: SeenState) -> tuple[str, ...]:
    """Return what prompts show of a trajectory's first state, and not of a rollout, whose environment does not say it.

    Args:
        trajectory: the trajectory.
        seen: what the environment gives after a reset to its task.
    """
    unsaid = {
        INSTRUCTION: bool(trajectory.instruction) and not seen.instruction,
        ACTIONS: trajectory.steps[0].admissible_actions is not None and seen.admissible_actions is None,
    }
    return tuple(part for part in PARTS if unsaid.get(part))


def telling(trajectories: Sequence[ExpertTrajectory]) -> ExpertTrajectory:
    """Return the first trajectory that lists the actions of its first state; the first of all where none does."""
    listing = (item for item in trajectories if item.steps[0].admissible_actions is not None)
    return next(listing, trajectories[0])


def walk(index: int, trajectory: ExpertTrajectory) -> WorkUnit:
    """Return the unit that plays a trajectory to its end, proves every state and says what it shows.

    Args:
        index: index of the trajectory.
        trajectory: the trajectory.
    """
    requests = [StateRequest(step, (), include_seen=True) for step in range(len(trajectory.steps))]
    return WorkUnit(index, trajectory, tuple(requests))


@dataclass(frozen=True)
class Played:
    """The play of a trajectory.

    Attributes:
        trajectory: the trajectory with its open parts filled, or None if it cannot be played.
        fault: why it cannot be played, or None.
    """

    trajectory: ExpertTrajectory | None
    fault: Fault | None = None


def played(trajectory: ExpertTrajectory, results: Sequence[StateResult], parts: Collection[str] = PARTS) -> Played:
    """Return what a play of a trajectory has found out.

    Args:
        trajectory: the trajectory as its file has it.
        results: the results of its `walk`, in any order.
        parts: those that it may fill (`lasting`).
    """
    in_order = sorted(results, key=lambda result: result.ref.step)
    broken = next((result for result in in_order if result.lost or result.expert_outcome is None), None)
    if broken is not None:
        return Played(None, broken.faults[-1] if broken.faults else Fault(broken.ref, "died", "it was not reached"))
    seen = {result.ref.step: result.seen for result in in_order if result.seen is not None}
    last = in_order[-1].expert_outcome
    return Played(_filled(trajectory, seen, None if last is None or FINAL not in parts else last.observation))


def _filled(trajectory: ExpertTrajectory, seen: Mapping[int, SeenState], final: str | None) -> ExpertTrajectory:
    steps = []
    for index, step in enumerate(trajectory.steps):
        shown = seen[index]
        listed = shown.admissible_actions if step.admissible_actions is None else step.admissible_actions
        solved = shown.solved if step.solved is None else step.solved
        steps.append(replace(step, admissible_actions=listed, solved=solved))
    return replace(
        trajectory,
        instruction=seen[0].instruction if trajectory.instruction is None else trajectory.instruction,
        steps=tuple(steps),
        final_observation=final if trajectory.final_observation is None else trajectory.final_observation,
    )
