"""The keys under `early_experience.environment` and `early_experience.collect.<set>`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from verl_ee.config.base import ROOT, Fraction, FrozenModel


class EnvironmentConfig(FrozenModel):
    """The environment that is branched, trained in and evaluated in."""

    id: str
    """Gymnasium id, for instance `verl_ee/Household-v0`."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment; an expert file that was recorded with others is refused."""


class CollectConfig(FrozenModel):
    """How alternatives are proposed and executed."""

    alternatives: Literal["admissible", "exhaustive", "policy", "mixture"] = "admissible"
    """Where alternatives come from; the expert's action never is one. `admissible`: uniformly, without replacement,
    from the actions that the environment lists (paper, section B.1: ALFWorld). `exhaustive`: all of them.
    `policy`: sampled from the policy of the job by its rollout servers, while environments execute what was sampled
    before (section 4.1). `mixture`: those, and up to `extra_admissible` listed ones (WebShop)."""
    k: Annotated[int, Field(ge=0)] = 8
    """Alternatives per state; fewer where fewer exist (paper, section B.1: 8 for ALFWorld). 0: the expert's action
    alone."""
    temperatures: Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], Field(min_length=1)] = (1.0,)
    """Temperatures of the policy's draws, one after the other."""
    draws: Annotated[int, Field(ge=1)] | None = None
    """Responses sampled per state at most: K at first, and more while fewer than K of their actions differ. null: K
    where the environment lists actions, 4 K where it does not."""
    unlisted: Literal["keep", "replace"] = "keep"
    """Fate of a policy's alternative that the environment does not list. `keep`: its refusal is worth predicting.
    `replace`: it is left out, and listed actions that are not used yet, drawn by chance, fill up to K (paper, section
    B.1: reflection)."""
    min_own: Fraction = 0.2
    """For `policy` and `mixture`: share of the alternatives that were possible (K, or the other listed actions where
    they are fewer) which the policy itself has to write, over all states; below it collecting stops."""
    min_filled: Fraction = 0.5
    """Share of the alternatives that were possible which a set has to have in the end; below it collecting stops."""
    extra_admissible: Annotated[int, Field(ge=0)] = 0
    """For `mixture`: listed actions besides the policy's K."""
    withhold_expert_tool: bool = False
    """Leave out every alternative that uses the expert's tool, and do not list it to a policy that proposes: what is
    tried then differs in kind, not in arguments alone (paper, appendix B: Tau-Bench). The tool of an action is the
    `name` of a JSON tool call, else the first word of the action."""
    include_expert_transition: bool = True
    """Also record what the expert's own action led to."""
    restore: Literal["auto", "snapshot", "fork", "replay"] = "auto"
    """How a state is reached again. `snapshot`: the environment's own. `fork`: the environment's process forks.
    `replay`: reset, then the actions that led to the state. `auto`: a trial of each, and the cheapest that is exact."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Ray workers that step environments, one logical CPU each; null: as many as Ray has free, at most one for each
    core of its nodes."""
    step_timeout: Annotated[float, Field(gt=0.0)] = 60.0
    """Seconds that a step may take."""
    start_timeout: Annotated[float, Field(gt=0.0)] = 300.0
    """Seconds that making or resetting the environment may take."""
    max_mismatch: Fraction = 0.01
    """Share of states that may fail to be reached again before the run stops."""
    max_failed: Fraction = 0.01
    """Share of alternatives that may fail to be executed (raise, hang, crash) before the run stops."""
    cache: str | None = None
    """Folder of executed transitions. Runs that share it never execute a transition twice; null: the run's own
    folder."""
    seed: int = 0
    """Seed of the choice of alternatives."""
    _set: str = PrivateAttr("")

    @property
    def wants_alternatives(self) -> bool:
        """Whether any alternatives are asked for, besides the expert's action."""
        return self.k > 0 or (self.alternatives == "mixture" and self.extra_admissible > 0)

    def key(self, name: str) -> str:
        """Return a key as a user writes it: in full where the config is one of a job's sets, else as an option."""
        return f"{ROOT}.collect.{self._set}.{name}" if self._set else f"--{name.replace('_', '-')}"
