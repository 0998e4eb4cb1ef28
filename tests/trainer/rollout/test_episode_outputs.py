"""Episodes as one sequence: the tokens that the server wrote are kept, and the template's own come between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.episode_games import MISHAPS_ID
from support.episodes import VERSIONS, Episodes, executed, info_of
from support.jobs import ROOT
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_ee.config import PromptConfig
from verl_ee.envs.household.env import Household
from verl_ee.objectives.episode_rows import episode_rows
from verl_ee.objectives.examples import encode
from verl_ee.prompts import Message
from verl_ee.prompts.formats import prompt_format
from verl_ee.trainer.rollout.episode_outputs import GrowingOutput, Lengths
from verl_ee.trainer.rollout.tokens import encoder_for

WIN = "Thought: Now.\nAction: win"
KEYS: dict[str, Any] = {"prompt.format": "react", "samples": "episode", "history_length": None, "max_turn_tokens": 40}
BEGIN = "<|im_start|>assistant\n"


def world(marks: Path, **keys: Any) -> Episodes:
    return with_context(Episodes(MISHAPS_ID, {"marks": marks, "told": True, "noisy": False}, **(KEYS | keys)))


def with_context(episodes: Episodes, context: int = 8192) -> Episodes:
    """Give the servers a context; without one they take the model's, and here is none."""
    episodes.config.actor_rollout_ref.rollout.max_model_len = context
    return episodes


def seen(response: str) -> str:
    """Return what the template puts between the end of a turn and the next answer."""
    return f"\n<|im_start|>user\nYou did {response!r}.<|im_end|>\n{BEGIN}"


def parts(episodes: Episodes, output: AgentLoopOutput) -> list[tuple[int, str]]:
    """Return the response in pieces, each with its mask."""
    pieces: list[tuple[int, list[int]]] = []
    for token, mask in zip(output.response_ids, output.response_mask, strict=True):
        if not pieces or pieces[-1][0] != mask:
            pieces.append((mask, []))
        pieces[-1][1].append(token)
    return [(mask, episodes.tokenizer.decode(ids)) for mask, ids in pieces]


def test_an_episode_is_one_output_of_what_was_generated_and_shown(tmp_path: Path) -> None:
    episodes = world(tmp_path)
    first = "I wait a bit.\n**Action:** go"
    ((output,),) = episodes.play([first, "Hm.", WIN])
    assert parts(episodes, output) == [
        (1, f"{first}<|im_end|>"),
        (0, seen("go")),
        (1, "Hm.<|im_end|>"),
        (0, seen("Hm.")),
        (1, f"{WIN}<|im_end|>"),
    ]
    assert executed([output]) == ["go", "Hm.", "win"]
    prompt = episodes.tokenizer.decode(output.prompt_ids)
    assert "Task: Do it." in prompt
    assert prompt.endswith(BEGIN)
    sent = [first, f"{first}<|im_end|>{seen('go')}Hm.", f"{first}<|im_end|>{seen('go')}Hm.<|im_end|>{seen('Hm.')}"]
    assert episodes.prompts[0] == prompt
    assert episodes.prompts[2] == f"{prompt}{sent[2]}"
    expected: list[float] = []
    for mask, text in parts(episodes, output):
        length = len(episodes.tokenizer.encode(text, add_special_tokens=False))
        expected += [-0.5 - place if mask else 0.0 for place in range(length)]
    assert output.response_logprobs == expected
    assert (output.reward_score, output.num_turns) == (1.0, 6)
    assert info_of([output]).items() >= {"turns": 3, "no_action": pytest.approx(1 / 3), "acc": 1.0}.items()
    assert {key: output.extra_fields[key] for key in VERSIONS} == {**VERSIONS, "max_global_steps": 5}
    assert len(set(episodes.request_ids)) == 1


def test_a_turn_has_a_bound_of_its_own_and_is_ended_where_it_is_cut(tmp_path: Path) -> None:
    episodes = world(tmp_path, max_turn_tokens=3)
    ((output,),) = episodes.play(["Action: go", *["Action: earn 1"] * 5])
    (_, first), (mask, between), *_ = parts(episodes, output)
    assert len(episodes.tokenizer.encode(first, add_special_tokens=False)) == 3
    assert "<|im_end|>" not in first
    assert (mask, between) == (0, f"<|im_end|>{seen(executed([output])[0])}")


def test_an_episode_ends_where_no_turn_has_room(tmp_path: Path) -> None:
    episodes = world(tmp_path)
    ((whole,),) = episodes.play(["Action: go"] * 6)
    room, rollout = len(whole.response_ids) // 2 + 40, episodes.config.actor_rollout_ref.rollout
    for key, limit in (("response_length", room), ("max_model_len", len(whole.prompt_ids) + room)):
        before, rollout[key] = rollout[key], limit
        ((output,),) = episodes.play(["Action: go"] * 6)
        rollout[key] = before
        info = info_of([output])
        assert (info["over_length"], output.response_mask[-1]) == (1, 1)
        assert 1 < info["turns"] < 6
        # A turn of 40 tokens would have had no room.
        assert room - 40 - len(whole.response_ids) // 6 < len(output.response_ids) <= room
        assert output.response_ids == whole.response_ids[: len(output.response_ids)]


@pytest.mark.parametrize("last", ["fail", "leave"])
def test_nothing_is_learned_of_an_episode_whose_environment_failed(tmp_path: Path, last: str) -> None:
    ((output,),) = world(tmp_path).play(["Action: go", f"Action: {last}"])
    assert set(output.response_mask) == {0}
    assert executed([output]) == ["go", last]
    assert (output.reward_score, info_of([output])["env_failed"]) == (0.0, 1)


def test_an_episode_that_never_begins_has_an_output_too(tmp_path: Path) -> None:
    ((output,),) = world(tmp_path).play([], task="fail")
    assert (output.response_mask, len(output.response_ids), output.response_logprobs) == ([0], 1, [-0.5])
    assert executed([output]) == []


def test_a_long_first_prompt_leaves_less_room(tmp_path: Path) -> None:
    """verl would count its tokens and the response's together."""
    episodes = world(tmp_path)
    ((whole,),) = episodes.play(["Action: go"] * 6)
    rollout = episodes.config.actor_rollout_ref.rollout
    rollout.prompt_length, rollout.response_length = 10, len(whole.prompt_ids) + 100
    ((output,),) = episodes.play(["Action: go"] * 6)
    assert info_of([output])["over_length"] == 1
    assert len(output.prompt_ids) + len(output.response_ids) <= rollout.prompt_length + rollout.response_length


def test_an_experts_episode_has_the_tokens_that_imitation_learns() -> None:
    """Also its texts that the template or a policy would not write so."""
    trajectory = Household().expert_trajectory("train/0")
    thoughts = ("I look.", None, " Two\nlines. ", "<think>no</think>")
    steps = tuple(replace(step, thought=thoughts[index % 4]) for index, step in enumerate(trajectory.steps))
    trajectory = replace(trajectory, steps=steps)
    form = prompt_format(PromptConfig(format="react"))
    episodes = with_context(Episodes("verl_ee/Household-v0", **{**KEYS, "max_turns": 30}))
    episodes.config.actor_rollout_ref.rollout.response_length = 8192
    ((output,),) = episodes.play([form.response(step.action, step.thought) for step in steps], task="train/0")
    (example,) = encode(episode_rows([trajectory], form), encoder_for(episodes.tokenizer, "qwen2", {}))
    assert (tuple(output.prompt_ids), tuple(output.response_ids)) == (example.prompt, example.target)
    assert tuple(map(bool, output.response_mask)) == example.learned
    assert info_of([output])["acc"] == 1.0


def test_turns_have_the_bound_too_where_each_is_an_output(tmp_path: Path) -> None:
    episodes = Episodes(MISHAPS_ID, {"marks": tmp_path, "told": True, "noisy": False}, max_turn_tokens=2)
    (outputs,) = episodes.play(["Action: go"] * 6)
    assert [len(output.response_ids) for output in outputs] == [2] * 6


def test_an_end_that_the_template_does_not_write_ends_a_turn_too() -> None:
    """A chat model may end its turn with another of the tokens that its generation config names."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")
    plain = encoder_for(tokenizer, "qwen2", {})
    (other,) = {token for token in tokenizer.encode("7", add_special_tokens=False)}
    output = GrowingOutput(replace(plain, ends=plain.ends | {other}), Lengths(1024, 1024, 40, 2048))
    asked: list[Message] = [{"role": "user", "content": "Begin."}]
    following: list[Message] = [*asked, {"role": "assistant", "content": "go"}, {"role": "user", "content": "On."}]
    first, words = output.prompt(asked), tokenizer.encode("go", add_special_tokens=False)
    output.add(SimpleNamespace(token_ids=[*words, other], log_probs=None, extra_fields={}))
    assert first is not None
    between = tokenizer.encode(f"\n<|im_start|>user\nOn.<|im_end|>\n{BEGIN}", add_special_tokens=False)
    assert output.prompt(following) == [*first, *words, other, *between]


def test_an_episode_of_which_a_turn_has_no_log_probabilities_has_none() -> None:
    encoder = encoder_for(AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model"), "qwen2", {})
    asked: list[Message] = [{"role": "user", "content": "Begin."}]
    following: list[Message] = [*asked, {"role": "assistant", "content": "go"}, {"role": "user", "content": "On."}]
    for log_probs, expected in (([-0.5], [-0.5]), (None, None)):
        output = GrowingOutput(encoder, Lengths(1024, 1024, 40, 2048))
        output.prompt(asked)
        output.add(SimpleNamespace(token_ids=[5], log_probs=[-0.25], extra_fields={}))
        output.prompt(following)
        output.add(SimpleNamespace(token_ids=[6], log_probs=log_probs, extra_fields={}))
        (made,) = output.finished()
        learned = None if made.response_logprobs is None else [made.response_logprobs[0], made.response_logprobs[-1]]
        assert learned == (None if expected is None else [-0.25, *expected])
        assert (made.response_mask[0], made.response_mask[-1], made.response_ids[-1]) == (1, 1, 6)
