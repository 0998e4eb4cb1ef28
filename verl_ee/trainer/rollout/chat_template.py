"""The chat template of a model: token ids of prompts and of answers, so that training equals what rollouts see."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from jinja2 import TemplateError
from transformers import GenerationConfig
from verl.utils.model import get_generation_config
from verl.utils.tokenizer.tokenizer import normalize_token_ids

from verl_ee.errors import ExampleError
from verl_ee.prompts.format import Message
from verl_ee.prompts.response import THINK_OPEN
from verl_ee.trainer.protocols import Tokenizer

ASKED: list[Message] = [{"role": "user", "content": "."}]
PROBE = "verl_ee-probe"
"""A text that no template has."""


class PromptBuilder(Protocol):
    """verl's builder of prompts, which its own loops use."""

    def build_initial_tokens(self, messages: list[Message]) -> list[int]:
        """Return the token ids of messages, up to where the assistant begins."""


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a tokenizer.

    Attributes:
        tokenizer: the tokenizer.
        builder: verl's builder of prompts.
        kwargs: `data.apply_chat_template_kwargs`.
        ends: tokens that end a turn.
        has_system: whether the template renders a system message; else its text goes into the first user message.
    """

    tokenizer: Tokenizer
    builder: PromptBuilder
    kwargs: Mapping[str, object]
    ends: frozenset[int]
    has_system: bool

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, builder: PromptBuilder, kwargs: Mapping[str, object], model_path: str | None
    ) -> ChatTemplate:
        """Return the template of a tokenizer; the model's generation config says what else ends a turn.

        Raises:
            ExampleError: if the tokenizer has no token that ends a turn.
        """
        return cls(tokenizer, builder, kwargs, end_tokens(tokenizer, model_path), _has_system(tokenizer, kwargs))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of messages, up to where the assistant begins.

        Raises:
            ExampleError: if the template refuses them.
        """
        try:
            return list(self.builder.build_initial_tokens(self._served(messages)))
        except (TemplateError, TypeError) as error:
            # verl tries a refused conversation once more, with content that a template may not be able to show.
            refused = error.__context__ if isinstance(error.__context__, TemplateError) else error
            raise _refusal(messages, refused) from None

    def conversation(self, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
        """Return the token ids of messages, and those of the answer to them up to the token that ends the turn.

        Prompt and target together are the template's conversation. A scaffold that the template puts around an answer,
        such as an empty thought, is in the target where the prompt does not have it.

        Raises:
            ExampleError: if the template renders the prompt in another way once there is an answer, or ends no turn.
        """
        prompt, served = self.prompt(messages), self._served(messages)
        whole = self._answered(prompt, served, {"role": "assistant", "content": answer.lstrip("\n")})
        if whole[: len(prompt)] != prompt:
            raise ExampleError(self._difference(prompt, whole))
        target = whole[len(prompt) :]
        last = next((index for index, token in enumerate(target) if token in self.ends), None)
        if last is None:
            known = ", ".join(repr(self.tokenizer.convert_ids_to_tokens(token)) for token in sorted(self.ends))
            raise ExampleError(
                f"The chat template does not end a turn: an answer ends with {self._text(target[-3:])!r}, and the "
                f"tokens that end a turn are {known}. Set the tokenizer's eos_token, or eos_token_id in "
                "generation_config.json."
            )
        return prompt, target[: last + 1]

    def text(self, response: Sequence[int]) -> str:
        """Return the text of a response, without control tokens and what belongs to them.

        Some templates name a channel in front of an answer. There only the last such channel is the answer, and a
        response that has not come to it has none.
        """
        text = self.tokenizer.decode(self._answer(response), skip_special_tokens=True)
        return f"{THINK_OPEN}{text}" if self.opens_thought else text

    def _answer(self, response: Sequence[int]) -> Sequence[int]:
        if not self.opening or self.opening[0] not in response:
            return response
        *named, close = self.opening
        starts = range(len(response) - len(named), -1, -1)
        start = next((at for at in starts if list(response[at : at + len(named)]) == named), len(response))
        # Between name and end there may be more, as the form of a structured answer.
        end = next((at for at in range(start, len(response)) if response[at] == close), len(response))
        return response[end + 1 :]

    @cached_property
    def opens_thought(self) -> bool:
        """Whether a prompt ends in an open thought, which a response then goes on with."""
        end = self._text(self.prompt(ASKED)[-8:]).rstrip()
        return end.endswith(THINK_OPEN)

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """Tokens that open the channel of an answer; none where no special token stands in front of it."""
        try:
            pairs = zip(self.conversation(ASKED, "A")[1], self.conversation(ASKED, "Z")[1], strict=False)
        except ExampleError:
            # A template may refuse an answer without a thought; then no channel stands in front of one.
            return ()
        shared = tuple(one for one, other in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        added = self.tokenizer.added_tokens_decoder
        is_channel = bool(shared) and shared[-1] in added and added[shared[-1]].special
        return shared if is_channel else ()

    def _served(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages that the template can render."""
        if self.has_system or not messages or messages[0]["role"] != "system":
            return list(messages)
        system, *rest = messages
        if not rest:
            return [{"role": "user", "content": system["content"]}]
        content = f"{system['content']}\n\n{rest[0]['content']}"
        return [{"role": rest[0]["role"], "content": content}, *rest[1:]]

    def _answered(self, prompt: list[int], messages: list[Message], answer: Message) -> list[int]:
        """Return the token ids of a conversation, of which the prompt's are known.

        A tokenizer takes a text apart at its control tokens before it does anything else. So nothing before the last
        one of the prompt has to be encoded again, if both texts begin alike.
        """
        last = next((at for at in reversed(range(len(prompt))) if prompt[at] in self._dividing), None)
        if last is not None and self._prompts_are_rendered:
            asked, whole = str(self._rendered(messages, ask=True)), str(self._rendered([*messages, answer]))
            begin = asked.rfind(self._dividing[prompt[last]])
            if begin >= 0 and whole.startswith(asked) and self._encoded(asked[begin:]) == prompt[last:]:
                return [*prompt[:last], *self._encoded(whole[begin:])]
        return list(normalize_token_ids(self._rendered([*messages, answer], tokenize=True)))

    @cached_property
    def _prompts_are_rendered(self) -> bool:
        """Whether prompts are what the template makes of messages; verl's builders for some models make their own."""
        try:
            return self.prompt(ASKED) == list(normalize_token_ids(self._rendered(ASKED, ask=True, tokenize=True)))
        except ExampleError:
            # A template may want more than one message.
            return False

    @cached_property
    def _dividing(self) -> dict[int, str]:
        """Texts of the tokens at which a text is taken apart wherever they stand, by id."""
        return {
            token: added.content
            for token, added in self.tokenizer.added_tokens_decoder.items()
            if not (added.normalized or added.lstrip or added.rstrip or added.single_word)
        }

    def _encoded(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _rendered(self, messages: list[Message], *, ask: bool = False, tokenize: bool = False) -> object:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=tokenize, add_generation_prompt=ask, **self.kwargs
            )
        except TemplateError as error:
            raise _refusal(messages, error) from None

    def _difference(self, prompt: list[int], conversation: list[int]) -> str:
        pairs = zip(prompt, conversation, strict=False)
        first = next((index for index, (one, other) in enumerate(pairs) if one != other), len(conversation))
        asked, answered = (self._text(tokens[first : first + 1]) for tokens in (prompt, conversation))
        return (
            f"The chat template renders a prompt in another way once it is answered: token {first} is {asked!r} in the "
            f"prompt and {answered!r} in the conversation, after {self._text(prompt[max(0, first - 8) : first])!r}. A "
            "policy would learn what rollouts never show it. Change the template, or data.apply_chat_template_kwargs."
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


def _refusal(messages: Sequence[Message], error: BaseException) -> ExampleError:
    roles = ", ".join(message["role"] for message in messages)
    return ExampleError(f"The chat template refuses a conversation of {roles}: {error}.")


def end_tokens(tokenizer: Tokenizer, model_path: str | None = None) -> frozenset[int]:
    """Return the tokens that end a turn: the tokenizer's, and those of the generation config of the model.

    Args:
        tokenizer: the tokenizer.
        model_path: folder or name of the model; None: where the tokenizer came from.

    Raises:
        ExampleError: if there is none.
    """
    paths = [path for path in (model_path, tokenizer.name_or_path) if path]
    of_model = next((config.eos_token_id for config in map(_generation_config, paths) if config is not None), None)
    more = [of_model] if isinstance(of_model, int) else of_model or []
    ends = frozenset(token for token in (tokenizer.eos_token_id, *more) if token is not None)
    if not ends:
        raise ExampleError("The tokenizer has no eos_token, so a response would never end. Set one and save it again.")
    return ends


def _generation_config(path: str) -> GenerationConfig | None:
    """Return the generation config of a model; None where there is none, or the path is one that only verl can read."""
    try:
        return get_generation_config(path)
    except (OSError, ValueError):
        return None


def _has_system(tokenizer: Tokenizer, kwargs: Mapping[str, object]) -> bool:
    """Return whether a template renders a system message: some refuse it, and some leave it out."""
    messages: list[Message] = [{"role": "system", "content": PROBE}, {"role": "user", "content": "."}]
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **kwargs)
    except TemplateError:
        return False
    return PROBE in str(rendered)
