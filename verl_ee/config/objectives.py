"""The keys under `early_experience.world_model`, `.reflection` and `.writers.<name>`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from verl_ee.config.base import ROOT, Fraction, FrozenModel

WRITERS = ("policy", "template")
"""Writers that exist without an entry under `writers`: the name is the kind."""

MIN_ACCEPTED = 0.1
"""Share of the rationales of a language model that must pass, unless a job says another."""


class WorldModelConfig(FrozenModel):
    """Which outcomes are predicted, and in what form."""

    collect: str = "world_model"
    """Set of branches in `collect`."""
    target: Literal["raw", "difference", "template", "summary"] = "raw"
    """Text to predict. `raw`: the observation as it came (paper, section B.1: ALFWorld). `difference`: its lines that
    the state does not show, and those that are gone. `template`: what `template` says. `summary`: what a language model
    wrote of it, told the task and the action (appendix B: WebShop, SearchQA, WebArena)."""
    template: str | None = None
    """For `target=template`: text with $task, $observation, $action, $outcome, $verdict and $end."""
    writer: str = "policy"
    """For `target=summary`: name of the writer. `policy` is the policy of the job (appendix B: SearchQA, WebArena);
    `writers` has the others."""
    budget: Literal["full", "matched", "one_to_one"] = "full"
    """`full`: every branch, then the full imitation budget, as in the authors' released settings. `matched`: branches
    are sampled so that both stages together take as many steps as imitation alone (paper, section 5.1). `one_to_one`:
    as many branches as expert states (paper, appendix B: SearchQA)."""
    matched_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """For `budget=matched`: share of the steps that goes to the world model."""
    include_expert_transition: bool = True
    """Predict what the expert's own action led to as well (paper, appendix B)."""
    per_state: Annotated[int, Field(ge=0)] | None = None
    """Alternatives of a state that are learned at most; null: all of the set."""
    balanced: bool = False
    """Choose the `per_state` alternatives from each class of outcome in turn. The class is the environment's own
    (`info["outcome_class"]`), else refused, no change or changed."""
    max_refused: Fraction = 1.0
    """Share of the examples that may be actions which the environment refused; more are left out, by chance."""
    seed: int = 0
    """Seed of what is left out."""


class EndpointConfig(FrozenModel):
    """An OpenAI-compatible server that writes rationales and summaries."""

    url: str = ""
    """Base URL, for instance `http://localhost:8000/v1`."""
    model: str = ""
    """Name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is written nowhere."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests at a time."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Further attempts of a request that was refused for now, timed out or lost, with growing pauses."""
    timeout: Annotated[float, Field(gt=0.0)] = 120.0
    """Seconds that an attempt may take."""
    max_failures: Annotated[int, Field(ge=0)] = 8
    """Requests in a row that may fail before the run stops."""
    token_limit: Annotated[int, Field(ge=1)] | None = None
    """Tokens, read and written, after which nothing more is asked; a run takes less than one request more. null: no
    limit."""


class WriterConfig(FrozenModel):
    """One writer of rationales or summaries."""

    kind: Literal["policy", "endpoint", "template"]
    """`policy`: the policy of the job, through its rollout servers. `endpoint`: an OpenAI-compatible server.
    `template`: a rule, which writes rationales alone."""
    endpoint: EndpointConfig = EndpointConfig()
    """The server, for `kind=endpoint`."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.9
    """Sampling temperature of the texts (paper, appendix B: TravelPlanner)."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Tokens of a text. A text that reaches the limit is cut off, and not learned."""
    _name: str = PrivateAttr("")

    def key(self, name: str) -> str:
        """Return a key of this writer as a user writes it."""
        return f"{ROOT}.writers.{self._name}.{name}"


class ReflectionConfig(FrozenModel):
    """How rationales are written and judged."""

    collect: str = "reflection"
    """Set of branches in `collect`."""
    k: Annotated[int, Field(ge=0)] | None = None
    """Alternatives that a rationale is shown; 0: the expert's outcome alone; null: all of the set."""
    balanced: bool = False
    """Choose the K alternatives from each class of outcome in turn. The class is the environment's own
    (`info["outcome_class"]`), else refused, no change or changed."""
    states: tuple[Literal["changed", "unsolved"], ...] = ()
    """Conditions on the states that get a rationale. States in which the task was solved never do. `changed`: the class
    of the expert's outcome (see `balanced`) is neither refused nor no change. `unsolved`: it is known that the task was
    not solved yet; states of which that is not known get none either."""
    writer: str = "policy"
    """Name of the writer. `policy` is the policy of the job (paper, section 4.3), `template` a rule for models too
    small to write; `writers` has the others."""
    gates: tuple[str, ...] = (
        "length",
        "label_words",
        "numbered_options",
        "outcome_as_seen",
        "other_action",
        "repeated",
        "grounded",
    )
    """Gates that a rationale passes before it is learned. One without a word, or cut off, never is."""
    min_accepted: Fraction | None = None
    """Share of the rationales that must pass; below it the run stops. null: 0.1, or 0 for a template."""
