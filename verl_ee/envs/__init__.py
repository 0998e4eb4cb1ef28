"""Environments: text in, text out, behind Gymnasium ids. Importing this package registers them."""

from __future__ import annotations

import gymnasium

from verl_ee.envs.contract import (
    AdmissibleActions,
    Expert,
    ExpertStep,
    ExpertTrajectory,
    Info,
    Snapshots,
    Tasks,
    TextEnv,
    arguments,
    capabilities,
    make,
    nondeterministic,
    without_module,
)
from verl_ee.envs.declarations import CanonicalForm, canonical_form, suggested_format, version_of

__all__ = [
    "AdmissibleActions",
    "CanonicalForm",
    "Expert",
    "ExpertStep",
    "ExpertTrajectory",
    "Info",
    "Snapshots",
    "Tasks",
    "TextEnv",
    "arguments",
    "canonical_form",
    "capabilities",
    "make",
    "nondeterministic",
    "register_envs",
    "suggested_format",
    "version_of",
    "without_module",
]

ENTRY_POINTS = {"verl_ee/Household-v0": "verl_ee.envs.household.env:Household"}


def register_envs() -> None:
    """Register the environments of verl_ee with Gymnasium; those already there stay as they are."""
    for env_id, entry_point in ENTRY_POINTS.items():
        if env_id not in gymnasium.registry:
            # The environments check the order of calls themselves, and count their own steps.
            gymnasium.register(id=env_id, entry_point=entry_point, nondeterministic=False, order_enforce=False)


register_envs()
