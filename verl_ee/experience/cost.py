"""The cost of a stage in quantities, and in money if there is a price table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from verl_ee.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Cost:
    """Quantities of a stage; a lower bound if a run was killed or a Ray worker was lost before it had reported all.

    Attributes:
        env_steps: environment steps executed, replay included.
        resets: episodes begun.
        prompt_tokens: tokens that language models read.
        completion_tokens: tokens that language models wrote.
        seconds: wall time.
        bytes: size of the files that were written.
    """

    env_steps: int = 0
    resets: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    bytes: int = 0

    def scaled(self, factor: float) -> Cost:
        """Return every quantity times `factor`; counts are rounded."""
        values = {name: value * factor for name, value in asdict(self).items()}
        return Cost(**{name: value if name == "seconds" else round(value) for name, value in values.items()})


QUANTITIES = tuple(item.name for item in fields(Cost))


def read_prices(path: Path) -> dict[str, float]:
    """Read a price table: a YAML mapping from quantities to the price of one unit.

    Raises:
        ConfigError: if the file cannot be read, or names something that has no price.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"Price table {path} cannot be read: {reason}. Expected lines like `env_steps: 0`.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"Price table {path}: expected a mapping of {', '.join(QUANTITIES)} to prices.")
    for name, price in content.items():
        if name not in QUANTITIES:
            raise ConfigError(f"Price table {path}: nothing is called {name!r}. {did_you_mean(str(name), QUANTITIES)}")
        if isinstance(price, bool) or not isinstance(price, int | float) or price < 0:
            raise ConfigError(f"Price table {path}: {name} is {price!r}; expected the price of one, a number >= 0.")
    return {str(name): float(price) for name, price in content.items()}


def money(cost: Cost, prices: Mapping[str, float]) -> float:
    """Return the money that a cost comes to, in the currency of the prices."""
    quantities: dict[str, float] = asdict(cost)
    return float(sum(price * quantities[name] for name, price in prices.items()))
