"""The formats by name, and formats of users by their import path."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable

from verl_ee.config import PromptConfig
from verl_ee.config.base import ROOT
from verl_ee.errors import ConfigError, did_you_mean
from verl_ee.prompts.format import PromptFormat
from verl_ee.prompts.react import ReactFormat
from verl_ee.prompts.tagged import TaggedFormat
from verl_ee.prompts.text import TextFormat

FORMATS: dict[str, Callable[[PromptConfig], PromptFormat]] = {
    "text": TextFormat,
    "tagged": TaggedFormat,
    "react": ReactFormat,
}


def prompt_format(prompt: PromptConfig) -> PromptFormat:
    """Return the format of a job.

    Args:
        prompt: the job's keys under `early_experience.prompt`; a class of a user's own is called with them.

    Raises:
        ConfigError: if there is no such format, or the template is none.
    """
    make = FORMATS.get(prompt.format) or _imported(prompt.format)
    try:
        made = make(prompt)
    except ConfigError:
        raise
    except Exception as error:  # the class is somebody else's code
        raise ConfigError(
            f"{ROOT}.prompt.format={prompt.format!r} cannot be made ({type(error).__name__}: {error}). It is called "
            "with the keys under prompt."
        ) from error
    if not isinstance(made, PromptFormat):
        missing = [name for name in _MEMBERS if not hasattr(made, name)]
        raise ConfigError(
            f"{ROOT}.prompt.format={prompt.format!r} lacks {', '.join(missing)}. See "
            "verl_ee.prompts.format.PromptFormat, or derive the class from verl_ee.prompts.text.TextFormat."
        )
    return made


def asked(prompt: PromptConfig, form: PromptFormat) -> str:
    """Return what tells the prompts of a job from those of another in the same states, as JSON.

    Args:
        prompt: the job's keys under `early_experience.prompt`.
        form: the format that they make.
    """
    given = prompt.model_dump(exclude_none=True, exclude_defaults=True)
    return json.dumps({**given, "system": form.system, "instruction": form.instruction}, sort_keys=True)


_MEMBERS = (
    *("answer_mark", "system", "instruction"),
    *("policy_prompt", "response", "read", "world_model_prompt", "outcome"),
)


def _imported(path: str) -> Callable[[PromptConfig], PromptFormat]:
    """Return the class that `module:Class` names."""
    where = f"{ROOT}.prompt.format={path!r}"
    module, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(f"{where} is no format. {did_you_mean(path, FORMATS)} A class of your own is module:Class.")
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # the module is somebody else's code
        raise ConfigError(
            f"{where} cannot be imported ({type(error).__name__}: {error}). Put its folder on PYTHONPATH."
        ) from error
    found = getattr(imported, name, None)
    if found is None:
        raise ConfigError(f"{where}: module {module!r} has no {name!r}.")
    if not callable(found):
        raise ConfigError(f"{where} is no class.")
    made: Callable[[PromptConfig], PromptFormat] = found
    return made
