"""The config group behind `+early_experience=<name>`, and the typed, frozen config that it becomes."""

from verl_ee.config.checks import (
    built,
    check_sets,
    collect_config,
    early_experience_of,
    needs_experts,
    parse,
    sets_of,
)
from verl_ee.config.models import (
    ROOT,
    CollectConfig,
    EarlyExperienceConfig,
    EndpointConfig,
    EnvironmentConfig,
    Objective,
    ReflectionConfig,
    StageConfig,
    WorldModelConfig,
    WriterConfig,
)

__all__ = [
    "ROOT",
    "CollectConfig",
    "EarlyExperienceConfig",
    "EndpointConfig",
    "EnvironmentConfig",
    "Objective",
    "ReflectionConfig",
    "StageConfig",
    "WorldModelConfig",
    "WriterConfig",
    "built",
    "check_sets",
    "collect_config",
    "early_experience_of",
    "needs_experts",
    "parse",
    "sets_of",
]
