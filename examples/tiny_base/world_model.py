"""The loss of the tiny base model on transitions of the household, before and after one epoch over others.

    python examples/tiny_base/world_model.py examples/tiny_base/model

The transitions are those of random walks, in houses of the split `train` to learn from and of `seen` to measure on. The
loss is the mean over the tokens of the outcome, in nats.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_ee.config import PromptConfig
from verl_ee.envs import make
from verl_ee.prompts import TextFormat
from verl_ee.prompts.state import EpisodeHistory

FORM = TextFormat(PromptConfig())
BATCH, LR = 16, 5e-4
"""Those of recipes/household/run.sh."""
Row = tuple[list[int], int]
"""Token ids of prompt and outcome, and the length of the prompt."""


def rows(tokenizer: object, split: str, houses: int, steps: int, seed: int) -> Iterator[Row]:
    """Yield the transitions of one random walk through each house."""
    rng, env = random.Random(seed), make("verl_ee/Household-v0", {"max_steps": steps})
    for index in range(houses):
        observation, info = env.reset(options={"task": f"{split}/{index}"})
        episode = EpisodeHistory(info["task"], 8)
        for _ in range(steps):
            state = episode.state(observation, info["admissible_actions"])
            action = rng.choice(info["admissible_actions"])
            observation, _, done, _, info = env.step(action)
            messages = [*FORM.world_model_prompt(state, action)]
            encode = tokenizer.apply_chat_template  # type: ignore[attr-defined]
            prompt = encode(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
            answer = tokenizer.encode(f"{FORM.outcome(observation)}<|im_end|>", add_special_tokens=False)  # type: ignore[attr-defined]
            yield [*prompt, *answer], len(prompt)
            episode.act(state, action)
            if done:
                break


def outcome_loss(model: torch.nn.Module, batch: Sequence[Row]) -> torch.Tensor:
    """Return the loss of each token of the outcomes."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    learned = torch.zeros((len(batch), width), dtype=torch.bool)
    for index, (tokens, prompt) in enumerate(batch):
        ids[index, : len(tokens)] = torch.tensor(tokens)
        learned[index, prompt : len(tokens)] = True
    learned = learned[:, 1:]
    logits = model(ids[:, :-1]).logits[learned]
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][learned], reduction="none")


@torch.no_grad()
def mean_loss(model: torch.nn.Module, measured: Sequence[Row]) -> float:
    """Return the mean loss per token."""
    parts = [outcome_loss(model, measured[at : at + BATCH]) for at in range(0, len(measured), BATCH)]
    return float(torch.cat(parts).mean())


def main() -> None:
    """Print the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--houses", type=int, default=300, help="to learn from; a fifth as many are measured on")
    parser.add_argument("--turns", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    learned = list(rows(tokenizer, "train", args.houses, args.turns, 0))
    measured = list(rows(tokenizer, "seen", args.houses // 5, args.turns, 1))
    print(f"untouched: {mean_loss(model, measured):.3f} nats per token ({len(measured)} transitions of `seen`)")
    random.Random(0).shuffle(learned)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for at in tqdm(range(0, len(learned), BATCH), desc="one epoch", unit="step"):
        loss = outcome_loss(model, learned[at : at + BATCH]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"after one epoch over {len(learned)} transitions of `train`: {mean_loss(model, measured):.3f}")


if __name__ == "__main__":
    main()
