"""Token ids of prompts and targets, from the functions that verl's rollouts use."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date

from omegaconf import DictConfig
from transformers import AutoConfig
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_ee.config import PromptConfig
from verl_ee.errors import ExampleError
from verl_ee.objectives.encoder import Encoder
from verl_ee.prompts import ControlTokens, Message, NeutralFormat, prompt_format
from verl_ee.trainer.protocols import Tokenizer
from verl_ee.trainer.rollout.chat_template import ChatTemplate

_NO_CONTROL = re.compile(
    r"\s+|<unused\d+>|</?(?:a|b|blockquote|body|br|caption|code|dd|div|dl|dt|em|figure|figcaption|footer|form|h[1-6r]|head|header|"
    r"html|i|img|input|label|li|nav|ol|option|p|pre|s|section|select|span|strong|sub|sup|table|tbody|td|tfoot|th|thead|"
    r"title|tr|u|ul)>"
)
"""Tokens of a vocabulary that control nothing, unless it calls them special."""


def end_token(tokenizer: Tokenizer) -> int:
    """Return the token that ends an expert's response in verl's own loops.

    Raises:
        ExampleError: if the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ExampleError("The tokenizer has no eos_token, so a response would never end. Set one and save it again.")
    return tokenizer.eos_token_id


def control_tokens(tokenizer: Tokenizer) -> ControlTokens:
    """Return the texts that a tokenizer would encode as control tokens, longest first.

    Tokens that the tokenizer does not call special are a model's own to write: `<think>`, `<tool_call>`. White space
    and HTML tags, which some vocabularies have as tokens, control nothing.
    """
    added, special = tokenizer.added_tokens_decoder.values(), tokenizer.all_special_tokens
    reserved = {*special, *(token.content for token in added if token.special)}
    others = {*(token.content for token in added), *tokenizer.get_added_vocab()}
    every = reserved | {token for token in others if not _NO_CONTROL.fullmatch(token)}
    return ControlTokens(_longest_first(every), _longest_first(reserved))


def _longest_first(tokens: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(tokens, key=lambda token: (-len(token), token)))


def neutral_format(prompt: PromptConfig, tokenizer: Tokenizer) -> NeutralFormat:
    """Return the format of a job, in which texts of an environment hold none of the tokenizer's control tokens.

    Args:
        prompt: the job's keys under `early_experience.prompt`.
        tokenizer: tokenizer of the model.

    Raises:
        ConfigError: if there is no such format, or its template is none.
    """
    return NeutralFormat(prompt_format(prompt), control_tokens(tokenizer))


def encoder_for(
    tokenizer: Tokenizer,
    hf_model_type: str | None,
    chat_template_kwargs: Mapping[str, object],
    day: str = PromptConfig().date,
    model_path: str | None = None,
) -> Encoder:
    """Return the encoder of a job. It encodes control tokens as such: `Encoder.neutral` or a format breaks them before.

    Args:
        tokenizer: tokenizer of the model.
        hf_model_type: `model_type` of the model's Hugging Face config; selects verl's token builder.
        chat_template_kwargs: `data.apply_chat_template_kwargs`.
        day: `early_experience.prompt.date`.
        model_path: folder or name of the model, whose generation config says which tokens end a turn.

    Raises:
        ExampleError: if the tokenizer has no token that ends a turn.
    """
    control = control_tokens(tokenizer)
    # transformers gives templates a clock by this name; what is passed goes before it.
    kwargs = {"strftime_now": date.fromisoformat(day).strftime, **chat_template_kwargs}
    builder = create_continuous_token_builder(tokenizer, hf_model_type=hf_model_type, chat_template_kwargs=kwargs)
    template = ChatTemplate.of(tokenizer, builder, kwargs, model_path)

    def conversation(messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
        # Whoever wrote it: an answer never ends its own turn.
        return template.conversation(messages, control.own(answer))

    return Encoder(template.prompt, conversation, control.in_messages, template.text, template.ends)


def model_type(config: DictConfig) -> str | None:
    """Return the type of the model, by which verl chooses how it builds prompts; None if nobody knows it."""
    model = config.actor_rollout_ref.model
    path = model.get("hf_config_path") or model.path
    try:
        kind: str = AutoConfig.from_pretrained(path, trust_remote_code=model.get("trust_remote_code", False)).model_type
    except (OSError, ValueError):
        return None
    return kind
