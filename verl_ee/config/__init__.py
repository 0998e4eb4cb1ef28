"""The config group behind `+early_experience=<name>`, and the typed, frozen config that it becomes."""

from verl_ee.config.base import ROOT
from verl_ee.config.checks import collect_config, early_experience_of, parse
from verl_ee.config.collecting import CollectConfig, EnvironmentConfig
from verl_ee.config.models import EarlyExperienceConfig, ExpertsFilter, Objective, PromptConfig, StageConfig
from verl_ee.config.needs import (
    built,
    check_environment,
    check_expert_keys,
    check_sets,
    needs_experts,
    sets_of,
)
from verl_ee.config.objectives import EndpointConfig, ReflectionConfig, WorldModelConfig, WriterConfig

__all__ = [
    "ROOT",
    "CollectConfig",
    "EarlyExperienceConfig",
    "EndpointConfig",
    "EnvironmentConfig",
    "ExpertsFilter",
    "Objective",
    "PromptConfig",
    "ReflectionConfig",
    "StageConfig",
    "WorldModelConfig",
    "WriterConfig",
    "built",
    "check_environment",
    "check_expert_keys",
    "check_sets",
    "collect_config",
    "early_experience_of",
    "needs_experts",
    "parse",
    "sets_of",
]
