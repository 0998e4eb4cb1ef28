"""Environments whose branches are easily got wrong; nothing of the package that branches them is imported here."""

from __future__ import annotations

import random
import sqlite3
from typing import Any

import gymnasium

Info = dict[str, Any]
StepReturn = tuple[str, float, bool, bool, Info]
LIMIT = 8
"""Steps after which Gymnasium ends an episode of `Tally`: as many as its expert takes."""


class Tally(gymnasium.Env[str, str]):
    """A sum that begins with task and seed; an odd one cannot be halved, and nobody says whether `add` worked."""

    version = "1"

    def __init__(self, render_mode: str | None = None) -> None:
        self.sum, self.used = 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        self.sum, self.used = int(options["task"].split()[-1]) + int(self.np_random.integers(100)), 0
        return self.view()

    def step(self, action: str) -> StepReturn:
        verb, _, number = action.partition(" ")
        said: Info = {}
        if verb == "add":
            self.sum += int(number)
        elif verb == "double":
            self.sum, said = 2 * self.sum, {"valid": True}
        elif verb == "halve" and self.sum % 2:
            said = {"valid": False, "outcome_class": "odd"}
        elif verb == "halve":
            self.sum, said = self.sum // 2, {"valid": True}
        self.used += verb != "add"
        observation, info = self.view()
        return observation, 1.0, verb == "stop", False, info | said

    def view(self) -> tuple[str, Info]:
        """Return observation and info of the present state."""
        actions = (*(f"add {number}" for number in range(1, 9)), "double", "halve", "stop")
        observation = f"The sum is {self.sum}, after {self.used} other actions."
        return observation, {"task": "Count.", "admissible_actions": actions[:: 1 if self.sum % 3 else -1]}

    def snapshot(self) -> Any:
        return self.sum, self.used

    def restore(self, state: Any) -> tuple[str, Info]:
        self.sum, self.used = state
        return self.view()


class Accounts(gymnasium.Env[str, str]):
    """Accounts in a database, whose connection serves only the thread that opened it."""

    version = "1"
    names = ("ann", "bob", "eve")

    def __init__(self, render_mode: str | None = None) -> None:
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        self.database.execute("CREATE TABLE account (name TEXT PRIMARY KEY, money INTEGER CHECK (money >= 0))")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        rng = random.Random(f"{seed} {options['task']}")
        return self.restore([(name, rng.randrange(10)) for name in self.names])

    def step(self, action: str) -> StepReturn:
        said: Info = {"valid": True}
        try:
            _, amount, giver, taker = action.split()
            self.database.execute("BEGIN")
            self.database.execute("UPDATE account SET money = money + ? WHERE name = ?", (int(amount), taker))
            self.database.execute("UPDATE account SET money = money - ? WHERE name = ?", (int(amount), giver))
            self.database.execute("COMMIT")
        except sqlite3.IntegrityError as error:
            self.database.execute("ROLLBACK")
            said = {"valid": False, "outcome_class": str(error)}
        observation, info = self.view()
        richest = max(money for _, money in self.snapshot())
        return observation, 0.0, richest > 20, False, info | said

    def view(self) -> tuple[str, Info]:
        """Return observation and info of the present state."""
        rows = self.snapshot()
        pairs = [(giver, taker) for giver in self.names for taker in self.names if giver != taker]
        actions = tuple(f"give {amount} {giver} {taker}" for amount in (1, 4) for giver, taker in pairs)
        return ", ".join(f"{name} has {money}" for name, money in rows), {"task": "Pay.", "admissible_actions": actions}

    def snapshot(self) -> Any:
        return self.database.execute("SELECT name, money FROM account ORDER BY name").fetchall()

    def restore(self, state: Any) -> tuple[str, Info]:
        self.database.execute("DELETE FROM account")
        self.database.executemany("INSERT INTO account VALUES (?, ?)", state)
        return self.view()


gymnasium.register("test/Tally-v0", entry_point=Tally, max_episode_steps=LIMIT)
gymnasium.register("test/Accounts-v0", entry_point=Accounts)
