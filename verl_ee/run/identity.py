"""What makes two runs the same: every setting and file that their data and their weights depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.models import ROOT
from verl_ee.errors import ConfigError

Identity = dict[str, Any]
VERL_KEYS = (
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.tokenizer_path",
    "actor_rollout_ref.model.custom_chat_template",
    "actor_rollout_ref.model.lora_rank",
    "actor_rollout_ref.model.lora_alpha",
    "actor_rollout_ref.model.lora.rank",
    "actor_rollout_ref.model.lora.alpha",
    "actor_rollout_ref.actor.strategy",
    "data.apply_chat_template_kwargs",
    "data.max_prompt_length",
    "data.max_response_length",
)
"""verl's keys that examples and mid-training depend on."""
FREE = ("resume", "save_freq", "evaluate", "prices")
"""Our keys that change neither data nor weights."""
SHOWN = 8


def identity_of(config: DictConfig, early: EarlyExperienceConfig) -> Identity:
    """Return the identity of a job, as flat keys.

    Args:
        config: of verl.
        early: its typed `early_experience`.

    Raises:
        ConfigError: if a file that it names cannot be read.
    """
    ours = {key: value for key, value in early.model_dump(mode="json").items() if key not in FREE}
    # Of a server, its model alone changes what it writes: limits may be raised, and addresses move.
    ours["reflection"]["endpoint"] = {"model": early.reflection.endpoint.model}
    theirs = {key: OmegaConf.select(config, key) for key in VERL_KEYS}
    return dict(_flat(ours, ROOT)) | {key: _plain(value) for key, value in theirs.items()} | _contents(early)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line per key whose value is not the same; a key that is missing has the value None."""
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    lines = [f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in keys]
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"and {len(lines) - SHOWN} more"]


def _contents(early: EarlyExperienceConfig) -> Identity:
    files = {name: getattr(early, name) for name in ("experts", "examples", "demonstrations")}
    given = {name: file for name, file in files.items() if file not in (None, "???")}
    return {f"content of {ROOT}.{name}": _sha256(name, Path(file).expanduser())[:16] for name, file in given.items()}


def _sha256(name: str, path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"{ROOT}.{name}={str(path)!r} cannot be read ({error.strerror}). Name another file."
        ) from None


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}")
    else:
        yield key, value


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
