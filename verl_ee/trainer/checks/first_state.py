"""Check of what a job's environment says after a reset, against what the expert file says or leaves to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from verl_ee.config import CollectConfig, EarlyExperienceConfig, Objective, sets_of
from verl_ee.config.base import ROOT
from verl_ee.envs import ExpertTrajectory, Info, make
from verl_ee.errors import ConfigError, EnvError
from verl_ee.experience.branching.protocol import SeenState
from verl_ee.experience.expert_files import ExpertFile
from verl_ee.experience.open_parts import ACTIONS, INSTRUCTION, telling, unsaid_parts
from verl_ee.experience.task_files import says_instruction


def check_first_state(
    config: EarlyExperienceConfig,
    experts: ExpertFile,
    given: Collection[Objective] = (),
    task_files: Sequence[Path] = (),
) -> str:
    """Refuse an environment that does not give what a set of branches, the expert file or its prompts need.

    Args:
        config: the job's keys under `early_experience`.
        experts: the experts of the job, as their file has them.
        given: objectives that `examples` has rows of.
        task_files: the task files of the job, which may say the instructions.

    Returns:
        A warning; empty if there is nothing to warn of.

    Raises:
        ConfigError: if a set needs listed actions or the file lists some, and the environment lists none; or if an
            instruction is open, and it gives none.
        EnvError: if it has to give something and cannot be reset.
    """
    collected = [name for name in sets_of(config, given) if name not in config.stores]
    needing_list = [name for name in collected if _needs_list(config.collect[name])]
    is_open = any(trajectory.instruction is None for trajectory in experts.trajectories)
    trajectory = telling(experts.trajectories)
    try:
        info = _first_info(config, trajectory)
    except EnvError as error:
        if needing_list or is_open:
            raise
        return f"nobody knows whether prompts of training and of rollouts are the same: {error}"
    if needing_list and info.get("admissible_actions") is None:
        name = needing_list[0]
        raise ConfigError(
            f"{ROOT}.collect.{name}.alternatives={config.collect[name].alternatives!r} needs listed actions, but "
            f"{config.environment.id} lists no admissible actions (info['admissible_actions'] is missing after reset). "
            f"Let the environment list them, or use alternatives=policy with unlisted=keep."
        )
    if is_open and info.get("task") is None:
        raise ConfigError(
            f"{ROOT}.experts={config.experts!r} leaves instructions open, and {config.environment.id} gives none "
            "(info['task'] is missing after reset). Write them into the expert file; `verl-ee import --goal` takes "
            "them from the first observations."
        )
    unsaid = unsaid_parts(trajectory, SeenState(info.get("task"), info.get("admissible_actions")))
    if ACTIONS in unsaid:
        raise ConfigError(
            f"{ROOT}.experts={config.experts!r} lists admissible actions, and {config.environment.id} lists none "
            "(info['admissible_actions'] is missing after reset), so prompts of rollouts would not show what those of "
            "training show. Let the environment list them, or take them out of the expert file."
        )
    return _instruction_warning(config, task_files) if INSTRUCTION in unsaid else ""


def _instruction_warning(config: EarlyExperienceConfig, task_files: Sequence[Path]) -> str:
    silent = [str(path) for path in task_files if not says_instruction(path)]
    if task_files and not silent:
        return ""
    where = f" in {', '.join(silent)}" if silent else ""
    return (
        f"{ROOT}.experts={config.experts!r} has instructions, which prompts of training show, and those of rollouts do "
        f"not: {config.environment.id} gives none (info['task'] is missing after reset), and there is no "
        f"extra_info.instruction{where}. Write extra_info.instruction into the task files, or let the environment say "
        "it in info['task']."
    )


def _first_info(config: EarlyExperienceConfig, trajectory: ExpertTrajectory) -> Info:
    """Return the info dict after a reset to the task of a trajectory."""
    env = make(config.environment.id, config.environment.kwargs)
    try:
        return env.reset(seed=trajectory.seed, options={"task": trajectory.task})[1]
    except Exception as error:  # the environment is somebody else's code
        raise EnvError(
            f"{config.environment.id} cannot be reset to task {trajectory.task!r} of an expert trajectory: "
            f"{type(error).__name__}: {error}. `verl-ee envs check` tries an environment."
        ) from error
    finally:
        env.close()


def _needs_list(config: CollectConfig) -> bool:
    """Return whether a set of branches takes alternatives from the actions that the environment lists."""
    if not config.wants_alternatives:
        return False
    return config.alternatives != "policy" or config.unlisted == "replace"
