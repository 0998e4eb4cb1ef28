"""The config group behind `+early_experience=<name>`, and the typed, frozen config that it becomes."""

from verl_ee.config.schema import (
    CollectConfig,
    EarlyExperienceConfig,
    EndpointConfig,
    EnvironmentConfig,
    Objective,
    ReflectionConfig,
    StageConfig,
    WorldModelConfig,
    built,
    check_sets,
    collect_config,
    needs_experts,
    parse,
    sets_of,
)

__all__ = [
    "CollectConfig",
    "EarlyExperienceConfig",
    "EndpointConfig",
    "EnvironmentConfig",
    "Objective",
    "ReflectionConfig",
    "StageConfig",
    "WorldModelConfig",
    "built",
    "check_sets",
    "collect_config",
    "needs_experts",
    "parse",
    "sets_of",
]
