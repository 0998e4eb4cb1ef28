"""The needs of a job's stages: objectives that are built, experts, an environment, sets of branches."""

from __future__ import annotations

from collections.abc import Collection

from verl_ee.config.base import ROOT
from verl_ee.config.models import EarlyExperienceConfig, Objective
from verl_ee.errors import ConfigError, did_you_mean

MISSING = "???"
"""Value of a key that the shipped methods leave to the user."""


def built(config: EarlyExperienceConfig, given: Collection[Objective] = ()) -> list[Objective]:
    """Return the objectives whose examples a job builds, in the order of its stages.

    Args:
        config: the job's keys under `early_experience`.
        given: objectives that `examples` has rows of.
    """
    used = [o for stage in config.stages.values() for o in stage.objectives if o not in given]
    return list(dict.fromkeys(used))


def needs_experts(config: EarlyExperienceConfig, given: Collection[Objective] = ()) -> bool:
    """Return whether a job visits the states of an expert file: not if `examples` and `demonstrations` have all.

    Args:
        config: the job's keys under `early_experience`.
        given: objectives that `examples` has rows of.
    """
    imitates_others = config.demonstrations is not None or "imitation" in given
    if any(objective != "imitation" or not imitates_others for objective in built(config, given)):
        return True
    # This budget counts the states of imitation, whoever gives the branches.
    return config.world_model.budget == "one_to_one" and "world_model" in built(config) and not imitates_others


def check_expert_keys(config: EarlyExperienceConfig, given: Collection[Objective] = ()) -> None:
    """Refuse a job that visits expert states, and names no expert file or no environment.

    Args:
        config: the job's keys under `early_experience`.
        given: objectives that `examples` has rows of.

    Raises:
        ConfigError: with the key that has no value, and the objectives that need it.
    """
    if not needs_experts(config, given):
        return
    needed_for = ""
    if config.examples is not None and (missing := built(config, given)):
        needed_for = f" ({ROOT}.examples has no rows of {', '.join(missing)})"
    for key, value in (("environment.id", config.environment.id), ("experts", config.experts)):
        if value == MISSING:
            raise ConfigError(f"{ROOT}.{key} has no value{needed_for}. Add {ROOT}.{key}=... to the command line.")


def check_environment(config: EarlyExperienceConfig, reason: str = "rows of the dataset name") -> None:
    """Refuse to play without an environment.

    Args:
        config: the job's keys under `early_experience`.
        reason: how the job comes to its agent, for the message.

    Raises:
        ConfigError: if none is named.
    """
    if config.environment.id == MISSING:
        raise ConfigError(
            f"{ROOT}.environment.id has no value, but {reason} the agent 'early_experience', "
            f"which plays in it. Add {ROOT}.environment.id=... to the command line, or name the agent of another loop."
        )


def sets_of(config: EarlyExperienceConfig, given: Collection[Objective] = ()) -> list[str]:
    """Return the sets of branches that a job reads, in the order of its stages.

    Args:
        config: the job's keys under `early_experience`.
        given: objectives that `examples` has rows of.
    """
    names = {"world_model": config.world_model.collect, "reflection": config.reflection.collect}
    return list(dict.fromkeys(names[o] for o in built(config, given) if o in names))


def check_sets(config: EarlyExperienceConfig, given: Collection[Objective] = ()) -> None:
    """Refuse a set of branches that nothing reads, and a stage that needs branches which nothing collects.

    Args:
        config: the job's keys under `early_experience`.
        given: objectives that `examples` has rows of.

    Raises:
        ConfigError: with the keys that are wrong or missing.
    """
    for name, stage in config.stages.items():
        for objective in stage.objectives:
            if objective not in given:
                _check_set(config, name, objective)
    # The methods that are shipped have the sets of these names, whether or not a job reads others instead.
    known = {"world_model", "reflection", config.world_model.collect, config.reflection.collect}
    for key in ("collect", "stores"):
        for name in getattr(config, key):
            if name not in known:
                raise ConfigError(
                    f"{ROOT}.{key}.{name}: no objective reads a set of this name. {did_you_mean(name, known)} "
                    f"{ROOT}.world_model.collect and {ROOT}.reflection.collect name the sets that are read."
                )


def _check_set(config: EarlyExperienceConfig, stage: str, objective: Objective) -> None:
    if objective == "imitation":
        return
    name = getattr(config, objective).collect
    if name not in config.collect and name not in config.stores:
        given = sorted({*config.collect, *config.stores})
        raise ConfigError(
            f"{ROOT}.stages.{stage} reads the branches {ROOT}.{objective}.collect={name!r}, but neither {ROOT}.collect "
            f"nor {ROOT}.stores has them. {did_you_mean(name, given)} Give {ROOT}.collect.{name}.k and "
            f"{ROOT}.collect.{name}.alternatives, or take the objective out."
        )
    collected = None if name in config.stores else config.collect[name]
    if objective == "reflection" and collected is not None and not collected.include_expert_transition:
        raise ConfigError(
            f"{ROOT}.collect.{name}.include_expert_transition=false, but {ROOT}.stages.{stage} reflects on what the "
            "expert's action led to. Set it to true."
        )
