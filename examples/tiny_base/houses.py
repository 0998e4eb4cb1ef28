"""States of the household, each for itself: an observation with its task and its actions, and nothing before it.

No action stands in front of its outcome.
"""

from __future__ import annotations

import random

from verl_ee.envs import make

FIRST_TASK = 5_000
"""Houses below this number are left to experts, GRPO and evaluation."""
_SIZES = ("small", "small", "small", "medium")
_ENVS = [make("verl_ee/Household-v0", {"size": size, "max_steps": 40}).unwrapped for size in _SIZES]


def house(rng: random.Random, most_steps: int = 14) -> tuple[str, str, list[str]]:
    """Return task, observation and possible actions after a random walk; half of it goes somewhere or takes something.

    Args:
        rng: draws house and walk.
        most_steps: of the walk.
    """
    env = rng.choice(_ENVS)
    while True:
        name = f"{rng.choice(('train', 'train', 'seen', 'unseen'))}/{rng.randrange(FIRST_TASK, 2 * FIRST_TASK)}"
        observation, info = env.reset(options={"task": name})
        for _ in range(rng.randrange(most_steps + 1)):
            actions = info["admissible_actions"]
            moving = [action for action in actions if action.startswith(("go to", "open", "take"))]
            observation, _, done, _, info = env.step(rng.choice(moving if moving and rng.random() < 0.6 else actions))
            if done:
                break
        else:
            return info["task"], observation, list(info["admissible_actions"])
