"""Abilities of the tiny base model: share of admissible actions and of solved tasks.

    python examples/tiny_base/check.py examples/tiny_base/model

Plays houses of the split `seen` with actions sampled at temperature 1, and with the likeliest action.
"""

from __future__ import annotations

import argparse

import torch
from corpus import FORM
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_ee.envs import make
from verl_ee.prompts.response import read_response
from verl_ee.prompts.state import EpisodeHistory


@torch.no_grad()
def respond(model: object, tokenizer: object, prompts: list[str], sample: bool) -> list[str]:
    """Return one response to each prompt."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)  # type: ignore[operator]
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    out = model.generate(  # type: ignore[attr-defined]
        **batch, max_new_tokens=24, pad_token_id=tokenizer.pad_token_id, **options
    )
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)  # type: ignore[attr-defined]


def play(model: object, tokenizer: object, tasks: list[str], sample: bool, turns: int) -> dict[str, float]:
    """Play all tasks side by side and return shares."""
    envs = [make("verl_ee/Household-v0", {"max_steps": turns}) for _ in tasks]
    seen = [env.reset(options={"task": task}) for env, task in zip(envs, tasks, strict=True)]
    episodes = [EpisodeHistory(info["task"], 8) for _, info in seen]
    running, solved = list(range(len(tasks))), 0
    count = {"responses": 0, "with an action": 0, "admissible": 0}
    for _ in tqdm(range(turns), desc="sampled" if sample else "greedy", unit="turn"):
        states = [episodes[i].state(seen[i][0], seen[i][1]["admissible_actions"]) for i in running]
        prompts = [
            tokenizer.apply_chat_template(FORM.policy_prompt(s), add_generation_prompt=True, tokenize=False)  # type: ignore[attr-defined]
            for s in states
        ]
        left = []
        responses = respond(model, tokenizer, prompts, sample)
        for i, state, response in zip(running, states, responses, strict=True):
            action = read_response(response, state.admissible_actions).action
            count["responses"] += 1
            count["with an action"] += action is not None
            episodes[i].act(state, action or response.strip())
            observation, _, done, cut, info = envs[i].step(action or response.strip())
            count["admissible"] += info["valid"]
            solved += info["success"]
            seen[i] = (observation, info)
            left += [] if done or cut else [i]
        running = left
        if not running:
            break
    total = count["responses"]
    return {
        "with an action": count["with an action"] / total,
        "admissible": count["admissible"] / total,
        "solved": solved / len(tasks),
    }


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=200, help="episodes")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--split", default="seen")
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tasks = [f"{args.split}/{index}" for index in range(args.n)]
    for sample in (True, False):
        shares = play(model, tokenizer, tasks, sample, args.turns)
        text = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        print(f"{'sampled at temperature 1' if sample else 'greedy'}: {text} ({args.n} episodes, {args.split})")


if __name__ == "__main__":
    main()
