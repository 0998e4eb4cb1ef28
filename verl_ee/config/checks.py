"""Settings under `early_experience` that exclude each other, and the message for each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, cast, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from verl_ee.config.base import ROOT
from verl_ee.config.collecting import CollectConfig
from verl_ee.config.models import RESERVED, EarlyExperienceConfig
from verl_ee.config.needs import MISSING, check_expert_keys, check_sets
from verl_ee.config.objectives import WRITERS
from verl_ee.errors import ConfigError, did_you_mean

RENAMED = {
    "collect.*.way": "collect.*.restore",
    "collect.*.facts": "collect.*.cache",
    "reflection.endpoint": "writers.<name>.endpoint, and reflection.writer and world_model.writer take that name",
    "reflection.temperature": "writers.<name>.temperature, and reflection.writer and world_model.writer take that name",
    "reflection.max_tokens": "writers.<name>.max_tokens, and reflection.writer and world_model.writer take that name",
}
"""Keys of version 0.1, and what they are called now."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def early_experience_of(job: DictConfig) -> EarlyExperienceConfig:
    """Return the typed `early_experience` of a composed verl job.

    Raises:
        ConfigError: naming every key that is wrong, its value, what is allowed and the fix.
    """
    return parse(cast(dict[str, Any], OmegaConf.to_container(job[ROOT], resolve=True)))


def parse(node: Mapping[str, Any]) -> EarlyExperienceConfig:
    """Turn the resolved content of `early_experience` into its typed form.

    Raises:
        ConfigError: naming every key that is wrong, its value, what is allowed and the fix.
    """
    try:
        config = EarlyExperienceConfig.model_validate(dict(node), strict=False)
    except ValidationError as error:
        # A list whose items are wrong is called too short besides.
        wrong = [item for item in error.errors() if item["type"] != "too_short" or not item["input"]]
        problems = [_describe(item, node) for item in wrong]
        raise ConfigError("\n".join(problems)) from None
    if not config.stages:
        raise ConfigError(f"{ROOT}.stages is empty. Name at least one stage.")
    for name in config.stages:
        if name in RESERVED or not name.isidentifier():
            raise ConfigError(
                f"{ROOT}.stages.{name}: a stage's name is also its folder's. Use letters, digits and _, and none of "
                f"{', '.join(RESERVED)}."
            )
    _check_names(config)
    if config.examples is None:
        check_expert_keys(config)
        check_sets(config)
    if config.world_model.target == "template" and config.world_model.template is None:
        raise ConfigError(f"{ROOT}.world_model.target='template' needs {ROOT}.world_model.template='...'.")
    _check_samples(config)
    _check_budget(config)
    _check_balance(config)
    _check_writers(config)
    return config


def _check_names(config: EarlyExperienceConfig) -> None:
    for key in ("collect", "writers"):
        for name in getattr(config, key):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{ROOT}.{key}: the name {name!r} is also part of a path and of a key. Use letters, digits, "
                    "'_' and '-', and no '-' in front."
                )


def _check_samples(config: EarlyExperienceConfig) -> None:
    if config.samples == "turn":
        return
    for key, value, fix in (
        ("history_length", config.history_length is None, "null: an episode shows all of its past turns"),
        ("max_turn_tokens", config.max_turn_tokens is not None, "N: one turn could else spend the whole episode's"),
    ):
        if not value:
            raise ConfigError(f"{ROOT}.samples=episode needs {ROOT}.{key}={fix}. Set it, or {ROOT}.samples=turn.")


def _check_budget(config: EarlyExperienceConfig) -> None:
    for name, stage in config.stages.items():
        if config.world_model.budget == "matched" and {"world_model", "imitation"} <= set(stage.objectives):
            raise ConfigError(
                f"{ROOT}.world_model.budget='matched' shares steps between stages, but {ROOT}.stages.{name} learns the "
                "world model and imitation in one. Use budget=full or one_to_one, or two stages."
            )


def _check_balance(config: EarlyExperienceConfig) -> None:
    reflection, world_model = config.reflection, config.world_model
    for key, limit, is_balanced, value in (
        ("reflection", "k", reflection.balanced, reflection.k),
        ("world_model", "per_state", world_model.balanced, world_model.per_state),
    ):
        if is_balanced and value is None:
            raise ConfigError(
                f"{ROOT}.{key}.balanced=true chooses among the alternatives of a state, but {ROOT}.{key}.{limit}=null "
                f"takes all of them. Set {ROOT}.{key}.{limit}, or balanced=false."
            )


def _check_writers(config: EarlyExperienceConfig) -> None:
    for key, name in (("reflection", config.reflection.writer), ("world_model", config.world_model.writer)):
        if name not in config.writers and name not in WRITERS:
            new = f" Give {ROOT}.writers.{name}.kind=endpoint, and {ROOT}.writers.{name}.endpoint.url and .model."
            hint = did_you_mean(name, {*WRITERS, *config.writers})
            raise ConfigError(f"{ROOT}.{key}.writer={name!r}: no writer has this name. {hint}{new}")
    if config.world_model.target == "summary" and config.writer(config.world_model.writer).kind == "template":
        raise ConfigError(
            f"{ROOT}.world_model.writer={config.world_model.writer!r} is a template, which writes rationales alone. "
            f"Use {ROOT}.world_model.writer=policy, or name a writer with kind=endpoint."
        )


def collect_config(given: Mapping[str, Any]) -> CollectConfig:
    """Return a collect config from some of its keys; text is converted, the others keep their defaults.

    Raises:
        ConfigError: naming every key that is wrong, its value and what is allowed.
    """
    try:
        return CollectConfig.model_validate(dict(given))
    except ValidationError as error:
        problems = [f"--{'.'.join(map(str, item['loc']))} {item['input']}: {item['msg']}." for item in error.errors()]
        raise ConfigError("\n".join(problems).replace("_", "-")) from None


def _describe(item: ErrorDetails, node: Mapping[str, Any]) -> str:
    location = tuple(str(part) for part in item["loc"])
    key, value, kind = ".".join([ROOT, *location]), item["input"], item["type"]
    if kind == "extra_forbidden":
        renamed = next((new for old, new in RENAMED.items() if fnmatch(".".join(location), old)), None)
        if renamed:
            return f"{key}={value!r} is an old key. It is now {ROOT}.{_filled(renamed, location)}."
        return f"Unknown key {key}={value!r}. {did_you_mean(location[-1], _fields_at(location[:-1]))}"
    if kind == "missing" or value == MISSING:
        return f"{key} has no value. Add {key}=... to the command line."
    return f"{key}={value!r}: {item['msg'].replace('Input should', 'it should')}. Change {key} on the command line."


def _filled(renamed: str, location: Sequence[str]) -> str:
    """Return a new key with the name that the old one has in its second place."""
    return renamed.replace("*", location[1]) if len(location) > 1 else renamed


def _fields_at(path: Sequence[str]) -> list[str]:
    """Return the keys that exist under a path."""
    model: type[BaseModel] | None = EarlyExperienceConfig
    rest = list(path)
    while rest and model is not None:
        field = model.model_fields.get(rest.pop(0))
        annotation = None if field is None else field.annotation
        if get_origin(annotation) is dict:
            # The next part of the path is a name that the user chose.
            annotation, rest = get_args(annotation)[1], rest[1:]
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return list(model.model_fields) if model else []
