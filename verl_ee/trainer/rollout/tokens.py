"""Token ids of prompts and targets, from the functions that verl's rollouts use."""

from __future__ import annotations

from collections.abc import Mapping

from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_ee.errors import ExampleError
from verl_ee.objectives.examples import Encoder
from verl_ee.prompts.control_tokens import break_control_tokens, break_in_messages
from verl_ee.prompts.text import Message
from verl_ee.trainer.protocols import Tokenizer


def end_token(tokenizer: Tokenizer) -> int:
    """Return the token that ends a response.

    Raises:
        ExampleError: if the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ExampleError("The tokenizer has no eos_token, so a response would never end. Set one and save it again.")
    return tokenizer.eos_token_id


def control_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the texts that a tokenizer would encode as control tokens, longest first."""
    added = [str(token) for token in tokenizer.get_added_vocab()]
    return sorted({*tokenizer.all_special_tokens, *added}, key=lambda token: (-len(token), token))


def encoder_for(tokenizer: Tokenizer, hf_model_type: str | None, chat_template_kwargs: Mapping[str, object]) -> Encoder:
    """Return the encoder of a job.

    Args:
        tokenizer: tokenizer of the model.
        hf_model_type: `model_type` of the model's Hugging Face config; selects verl's token builder.
        chat_template_kwargs: `data.apply_chat_template_kwargs`.

    Raises:
        ExampleError: if the tokenizer has no end-of-sequence token.
    """
    end, control = end_token(tokenizer), control_tokens(tokenizer)
    builder = create_continuous_token_builder(
        tokenizer, hf_model_type=hf_model_type, chat_template_kwargs=dict(chat_template_kwargs)
    )

    def prompt(messages: list[Message]) -> list[int]:
        return list(builder.build_initial_tokens(break_in_messages(messages, control)))

    def target(text: str) -> list[int]:
        return [*tokenizer.encode(break_control_tokens(text, control), add_special_tokens=False), end]

    return Encoder(prompt, target)
