"""The identity of a run: every setting and file that its data and its weights depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from pydantic import JsonValue

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.base import ROOT
from verl_ee.errors import ConfigError
from verl_ee.experience.files.atomic import file_digest
from verl_ee.experience.provenance import DECISIVE
from verl_ee.prompts.formats import prompt_format

Identity = Mapping[str, JsonValue]
"""Values by key: our keys and verl's with dots, and one key for the content of each file."""
VERL_KEYS = (
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.tokenizer_path",
    "actor_rollout_ref.model.custom_chat_template",
    "actor_rollout_ref.model.lora_rank",
    "actor_rollout_ref.model.lora_alpha",
    "actor_rollout_ref.model.lora.rank",
    "actor_rollout_ref.model.lora.alpha",
    "actor_rollout_ref.model.lora_adapter_path",
    "actor_rollout_ref.actor.strategy",
    "data.apply_chat_template_kwargs",
    "data.max_prompt_length",
    "data.max_response_length",
)
"""verl's keys that examples and mid-training depend on."""
WITHOUT_EFFECT = frozenset(
    {
        *("resume", "save_freq", "evaluate", "console", "prices", "max_dropped"),
        *("step_timeout", "start_timeout", "max_failed_episodes"),
    }
)
"""Our keys that change neither data nor weights: limits may be raised."""
FILES = ("experts", "examples", "demonstrations")
"""Our keys that name a file whose content counts."""
MAX_LINES = 8
"""Differences that a message lists."""


def identity_of(config: DictConfig, early: EarlyExperienceConfig) -> Identity:
    """Return the identity of a job.

    Args:
        config: config of verl.
        early: its typed `early_experience`.

    Raises:
        ConfigError: if a file that it names cannot be read.
    """
    ours = early.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    ours["collect"] = {
        name: collect.model_dump(mode="json", include=set(DECISIVE)) for name, collect in early.collect.items()
    }
    del ours["reflection"]["min_accepted"]
    form = prompt_format(early.prompt)
    # The words themselves: a format may have other ones in another version.
    ours["prompt"] |= {"system": form.system, "instruction": form.instruction}
    for writer in ours["writers"].values():
        # The model of a server alone changes its texts: limits may be raised, and addresses move.
        writer["endpoint"] = {"model": writer["endpoint"]["model"]}
    verls: dict[str, JsonValue] = {key: _plain(OmegaConf.select(config, key)) for key in VERL_KEYS}
    return dict(_flat(ours, ROOT)) | verls | _contents(early)


def differences(before: Identity, now: Identity) -> list[str]:
    """Return one line per key whose values differ; a key that is missing has the value None."""
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    lines = [f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in keys]
    return lines if len(lines) <= MAX_LINES else [*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES} more"]


def _contents(early: EarlyExperienceConfig) -> dict[str, JsonValue]:
    """Return the hash of each file that a job names."""
    hashes: dict[str, JsonValue] = {}
    for key in FILES:
        file = getattr(early, key)
        if file not in (None, "???"):
            hashes[f"content of {ROOT}.{key}"] = _sha256(key, Path(file).expanduser())[:16]
    return hashes


def _sha256(key: str, path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise ConfigError(f"{ROOT}.{key}={str(path)!r} cannot be read ({error.strerror}). Name another file.") from None


def _flat(value: JsonValue, key: str) -> Iterator[tuple[str, JsonValue]]:
    """Yield the leaves of a nested object, each with its key in full; an empty object is a leaf."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}")
    else:
        yield key, value


def _plain(value: object) -> JsonValue:
    """Return a value of verl's config as JSON would hold it."""
    plain: JsonValue = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value  # type: ignore[assignment]
    return plain
