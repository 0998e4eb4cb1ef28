"""A program that plays actions from a reset, each in an environment of its own, and tells what the last one led to.

It reads a JSON object with `id` and `plays` from its input, each play a list of task, seed, the actions before, and the
action. It writes a JSON object with `outcomes` in the same order, and `modules`: what it has imported of this package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium


def outcome(env_id: str, task: str, seed: int | None, actions: Sequence[str]) -> list[Any]:
    """Return observation, validity, end and class of the last action."""
    env = gymnasium.make(env_id, disable_env_checker=True)
    env.reset(seed=seed, options={"task": task})
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
    env.close()
    return [observation, info.get("valid"), terminated or truncated, info.get("outcome_class", "")]


def main() -> None:
    request = json.load(sys.stdin)
    outcomes = [
        outcome(request["id"], task, seed, [*prefix, action]) for task, seed, prefix, action in request["plays"]
    ]
    modules = sorted(name for name in sys.modules if name.startswith("verl_ee"))
    json.dump({"outcomes": outcomes, "modules": modules}, sys.stdout)


if __name__ == "__main__":
    main()
