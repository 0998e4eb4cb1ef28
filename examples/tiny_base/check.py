"""Abilities of the tiny base model, per prompt format: share of admissible actions and of solved tasks; tool calls.

    python examples/tiny_base/check.py examples/tiny_base/model

Plays houses of the split `seen` in every format, with the package's own prompts, with actions sampled at temperature 1
and with the likeliest action. Tool calls are asked for in generated worlds that the model was not trained on.
"""

from __future__ import annotations

import argparse
import json
import re
from itertools import islice
from typing import Any

import torch
from corpus import samples
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_ee.config import PromptConfig
from verl_ee.envs import make
from verl_ee.prompts.formats import FORMATS, prompt_format
from verl_ee.prompts.state import EpisodeHistory

HISTORY = {"text": 8, "tagged": 8, "react": None}
"""Past turns in a prompt: the default of `history_length`, and whole episodes where a chat grows."""
UNSEEN_WORLDS = 1_000_003
"""Seed of worlds that no build uses."""


class Player:
    """A model that answers prompts."""

    def __init__(self, path: str, sample: bool) -> None:
        """Load a model; it samples at temperature 1, or takes the likeliest token."""
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        self._options: dict[str, Any] = sampling if sample else {"do_sample": False}
        self.name = "sampled" if sample else "greedy"

    @torch.no_grad()
    def answers(self, conversations: list[tuple[list[Any], list[Any] | None]], most: int) -> list[str]:
        """Return one response of at most `most` tokens to each conversation and its tools."""
        prompts = [
            self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
            for messages, tools in conversations
        ]
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        out = self._model.generate(
            **batch, max_new_tokens=most, pad_token_id=self.tokenizer.pad_token_id, **self._options
        )
        return list(self.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


def play(player: Player, name: str, tasks: list[str], turns: int) -> dict[str, float]:
    """Play all tasks side by side and return shares."""
    form = prompt_format(PromptConfig(format=name))
    envs = [make("verl_ee/Household-v0", {"max_steps": turns}) for _ in tasks]
    seen = [env.reset(options={"task": task}) for env, task in zip(envs, tasks, strict=True)]
    episodes = [EpisodeHistory(info["task"], HISTORY[name]) for _, info in seen]
    running, count = list(range(len(tasks))), {"action": 0, "admissible": 0}
    total = solved = 0
    for _ in tqdm(range(turns), desc=f"{name}, {player.name}", unit="turn"):
        states = [episodes[i].state(seen[i][0], seen[i][1]["admissible_actions"]) for i in running]
        responses = player.answers([(form.policy_prompt(state), None) for state in states], 64)
        left = []
        for i, state, response in zip(running, states, responses, strict=True):
            read = form.read(response, state.admissible_actions)
            action = read.action or response.strip()
            episodes[i].act(state, action, read.thought)
            observation, _, done, cut, info = envs[i].step(action)
            total += 1
            count["action"] += read.action is not None
            count["admissible"] += info["valid"]
            solved += info["success"]
            seen[i] = (observation, info)
            left += [] if done or cut else [i]
        running = left
        if not running:
            break
    return {**{key: number / total for key, number in count.items()}, "solved": solved / len(tasks)}


def call_tools(player: Player, worlds: int) -> dict[str, float]:
    """Return shares of tool calls: those that parse, and those whose function and arguments are in the prompt."""
    asked = [s for s in islice(samples(UNSEEN_WORLDS), 40 * worlds) if s.tools][:worlds]
    conversations = []
    for sample in asked:
        last = max(index for index, message in enumerate(sample.messages) if message.get("tool_calls"))
        conversations.append((sample.messages[:last], sample.tools))
    count = {"action": 0, "admissible": 0}
    for start in range(0, worlds, 50):
        part = conversations[start : start + 50]
        for (messages, tools), response in zip(part, player.answers(part, 64), strict=True):
            call = _call(response)
            count["action"] += call is not None
            count["admissible"] += call is not None and _is_possible(call, messages, tools or [])
    return {key: number / len(asked) for key, number in count.items()}


def _call(response: str) -> dict[str, Any] | None:
    found = re.search(r"<tool_call>(.*?)</tool_call>", response, re.DOTALL)
    try:
        call = json.loads(found[1]) if found else None
    except json.JSONDecodeError:
        return None
    return call if isinstance(call, dict) and isinstance(call.get("arguments"), dict) else None


def _is_possible(call: dict[str, Any], messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> bool:
    """Return whether a call names a function with its arguments, all of them named somewhere in the conversation."""
    text = " ".join(str(message["content"]) for message in messages)
    schema = next((tool["function"] for tool in tools if tool["function"]["name"] == call.get("name")), None)
    if schema is None or set(schema["parameters"]["required"]) != set(call["arguments"]):
        return False
    return all(isinstance(value, str) and value in text for value in call["arguments"].values())


def main() -> None:
    """Print the shares as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=100, help="episodes, and tool calls")
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--split", default="seen")
    parser.add_argument("--format", choices=(*FORMATS, "tools"), help="one alone")
    args = parser.parse_args()
    torch.manual_seed(0)
    tasks = [f"{args.split}/{index}" for index in range(args.n)]
    rows = []
    for player in (Player(args.model, sample=True), Player(args.model, sample=False)):
        for name in (args.format,) if args.format else (*FORMATS, "tools"):
            shares = call_tools(player, args.n) if name == "tools" else play(player, name, tasks, args.turns)
            solved = f"{shares['solved']:.1%}" if "solved" in shares else "-"
            rows.append(f"| {name} | {player.name} | {shares['action']:.1%} | {shares['admissible']:.1%} | {solved} |")
    print(f"| format | | responses with an action | admissible actions | tasks solved, of {args.n} |")
    print("|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
