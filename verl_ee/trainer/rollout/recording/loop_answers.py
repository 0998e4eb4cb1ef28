"""The first answer that an agent loop of the job sends, compared with the one that the chat template renders."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import groupby
from operator import itemgetter

from omegaconf import DictConfig, OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_ee.config import PromptConfig
from verl_ee.prompts.format import Message
from verl_ee.trainer.protocols import Tokenizer
from verl_ee.trainer.rollout.chat_template import ChatTemplate
from verl_ee.trainer.rollout.tokens import model_type


def difference_line(
    config: DictConfig,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    outputs: Sequence[AgentLoopOutput],
    response: str,
) -> str:
    """Return how the first answer that a loop sends differs from the chat template's; empty if it does not.

    A loop of the job decides what GRPO is sent, so what it sends is learned, and a difference is only reported.

    Args:
        config: config of verl.
        tokenizer: tokenizer of the model.
        messages: messages of the prompt.
        outputs: outputs of the loop.
        response: the expert's first response.
    """
    path, kwargs = config.actor_rollout_ref.model.path, config.data.get("apply_chat_template_kwargs") or {}
    day = OmegaConf.select(config, "early_experience.prompt.date") or PromptConfig().date
    kwargs = {"strftime_now": date.fromisoformat(day).strftime, **kwargs}
    builder = create_continuous_token_builder(tokenizer, hf_model_type=model_type(config), chat_template_kwargs=kwargs)
    try:
        target = ChatTemplate.of(tokenizer, builder, kwargs, path).conversation(messages, response)[1]
    except Exception as error:  # from a template or a tokenizer of the user: nothing that only tells may end a job
        return f"The first answer of the demonstrations could not be compared with the chat template's: {error}"
    sent = _first_answer(outputs)
    first = next((index for index, (one, two) in enumerate(zip(sent, target, strict=False)) if one != two), None)
    if first is None and len(sent) == len(target):
        return ""
    at = min(len(sent), len(target)) if first is None else first
    return (
        f"Token {at} of the first answer is {_shown(tokenizer, sent, at)} in the agent loop, and "
        f"{_shown(tokenizer, target, at)} in the chat template. Training learns what the loop sends, as GRPO does."
    )


def _first_answer(outputs: Sequence[AgentLoopOutput]) -> list[int]:
    for output in outputs:
        for learned, run in groupby(zip(output.response_mask, output.response_ids, strict=True), itemgetter(0)):
            if learned:
                return [token for _, token in run]
    return []


def _shown(tokenizer: Tokenizer, tokens: Sequence[int], at: int) -> str:
    return repr(tokenizer.decode(tokens[at : at + 1], skip_special_tokens=False)) if at < len(tokens) else "none"
