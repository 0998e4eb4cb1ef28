"""The keys under `early_experience.*`: names, types, ranges, defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

ROOT = "early_experience"
Objective = Literal["world_model", "imitation", "reflection"]
RESERVED = ("base", "collect", "reflect", "summarise", "hand_over", "grpo", "store", "cache", "lock")
"""Names that a stage may not have: other stages and folders of a run have them."""
WRITERS = ("policy", "template")
"""Writers that exist without an entry under `writers`: the name is the kind."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EnvironmentConfig(_Frozen):
    """The environment that is branched, trained in and evaluated in."""

    id: str
    """Gymnasium id, for instance `verl_ee/Household-v0`."""
    kwargs: dict[str, Any] = {}
    """Arguments of the environment; an expert file that was recorded with others is refused."""


class CollectConfig(_Frozen):
    """How alternatives are proposed and executed."""

    alternatives: Literal["admissible", "exhaustive", "policy", "mixture"] = "admissible"
    """Where alternatives come from; the expert's action never is one. `admissible`: uniformly, without replacement,
    from the actions that the environment lists (paper, section B.1: ALFWorld). `exhaustive`: all of them.
    `policy`: sampled from the policy of the job by its rollout servers, while environments execute what was sampled
    before (section 4.1). `mixture`: those, and up to `extra_admissible` listed ones (WebShop)."""
    k: Annotated[int, Field(ge=1)] = 8
    """Alternatives per state; fewer where fewer exist (paper, section B.1: 8 for ALFWorld)."""
    temperatures: Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], Field(min_length=1)] = (1.0,)
    """Temperatures of the policy's draws, one after the other."""
    draws: Annotated[int, Field(ge=1)] | None = None
    """Responses sampled per state, before those that repeat are left out; null: K."""
    unlisted: Literal["keep", "replace"] = "keep"
    """Fate of a policy's alternative that the environment does not list. `keep`: its refusal is worth
    predicting. `replace`: by a listed action that is not used yet, by chance (paper, section B.1: reflection)."""
    extra_admissible: Annotated[int, Field(ge=0)] = 0
    """For `mixture`: listed actions besides the policy's K."""
    withhold_expert_tool: bool = False
    """Leave out every alternative that uses the expert's tool, and do not list it to a policy that proposes: what is
    tried then differs in kind, not in arguments alone (paper, appendix B: Tau-Bench). The tool of an action is the
    `name` of a JSON tool call, else its first word."""
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

    def key(self, name: str) -> str:
        """Return a key as a user writes it: in full where the config is one of a job's sets, else as an option."""
        return f"{ROOT}.collect.{self._set}.{name}" if self._set else f"--{name.replace('_', '-')}"


class WorldModelConfig(_Frozen):
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
    max_refused: Fraction = 1.0
    """Share of the examples that may be actions which the environment refused; more are left out, by chance."""
    seed: int = 0
    """Seed of what is left out."""


class EndpointConfig(_Frozen):
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


class WriterConfig(_Frozen):
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


class ReflectionConfig(_Frozen):
    """How rationales are written and judged."""

    collect: str = "reflection"
    """Set of branches in `collect`."""
    k: Annotated[int, Field(ge=0)] | None = None
    """Alternatives that a rationale is shown; 0: the expert's outcome alone; null: all of the set."""
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
    )
    """Gates that a rationale passes before it is learned."""
    min_accepted: Fraction = 0.0
    """Share of the rationales that must pass; below it the run stops."""


class StageConfig(_Frozen):
    """One pass of supervised training on the actor workers."""

    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)]
    """Which examples, put together and shuffled: the outcome of each branch, the expert's action in each state, or a
    rationale followed by that action."""
    epochs: Annotated[int, Field(ge=1)]
    """Passes over the examples (paper, section B.1: 2 of imitation; section 5.1: 1 of the world model)."""
    lr: Annotated[float, Field(gt=0.0)]
    """Peak learning rate."""
    batch_size: Annotated[int, Field(ge=1)]
    """Examples per optimizer step, over all workers."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: the peak throughout, or half a cosine from the peak down to 0."""
    warmup_ratio: Fraction = 0.0
    """Share of the stage's steps in which the learning rate rises from 0."""
    seed: int = 0
    """Seed of the order of the examples."""


class HandOverConfig(_Frozen):
    """State that GRPO begins with, besides the mid-trained policy."""

    optimizer: Literal["fresh", "keep"] = "fresh"
    """Adam's moments. `fresh`: from nothing, as a job that starts from a checkpoint's weights would; those of a
    supervised loss have another scale. `keep`: as the last stage left them. Learning rate and schedule are GRPO's."""
    reference: Literal["mid_trained", "base"] = "mid_trained"
    """Policy that GRPO's KL term pulls to. `mid_trained`: the policy as it was handed over, also after a resume.
    `base`: `actor_rollout_ref.model.path`, which would undo mid-training."""


class EarlyExperienceConfig(_Frozen):
    """Everything under `early_experience`."""

    method: str
    """Name of the method, for reports."""
    environment: EnvironmentConfig
    experts: str
    """Expert file (JSON lines, see docs/data.md)."""
    max_experts: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many trajectories of the file."""
    history_length: Annotated[int, Field(ge=0)] = 8
    """Past turns shown in a prompt."""
    max_turns: Annotated[int, Field(ge=1)] = 30
    """Turns after which an episode ends in GRPO and in evaluation."""
    max_dropped: Fraction = 0.01
    """Share of a stage's examples that may be over the length limit, and of the summaries that may be empty or cut off,
    before the run stops."""
    evaluate: bool = True
    """Run verl's validation after every stage."""
    console: Literal["full", "quiet"] = "full"
    """Output of a job. `full`: everything, the plugin's lines begin with `verl_ee |`. `quiet`: the plugin's lines
    alone; everything is in `job.log` in `trainer.default_local_dir`, and a job that fails shows its last lines."""
    stores: dict[str, str] = {}
    """Folders that `verl-ee collect` or another run has collected, by set; such a set is not collected."""
    examples: str | None = None
    """Rows file of `verl-ee import`: an objective that has rows in it learns these, and nothing is collected for it."""
    demonstrations: str | None = None
    """Parquet file of dataset rows with the `expert_responses` to each: imitation learns what the job's own agent loops
    make of them, in place of the expert file."""
    prices: str | None = None
    """Price table (YAML, see docs/collecting.md); the summary then says what collecting came to."""
    collect: dict[str, CollectConfig] = {}
    """Sets of branches, by name; they share what is executed."""
    writers: dict[str, WriterConfig] = {}
    """Writers of rationales and summaries, by name. `policy` and `template` exist without an entry, with the defaults
    of their kind."""
    world_model: WorldModelConfig = WorldModelConfig()
    reflection: ReflectionConfig = ReflectionConfig()
    stages: dict[str, StageConfig]
    """Stages in the order in which they run."""
    save_freq: Annotated[int, Field(ge=0)] = 500
    """Optimizer steps between two checkpoints of a stage; 0: at its end alone. A job that is killed goes on from the
    newest; of a stage that has ended the last one is kept."""
    hand_over: HandOverConfig = HandOverConfig()
    resume: Literal["strict", "force"] = "strict"
    """Fate of a run whose settings or files have changed since. `strict`: refused, with the differences.
    `force`: it goes on; what has finished stays, and a stage whose examples changed is trained again."""

    def model_post_init(self, _: Any) -> None:
        """Tell every set and every writer its name."""
        for name, item in self.collect.items():
            item._set = name
        for name, writer in self.writers.items():
            writer._name = name

    def writer(self, name: str) -> WriterConfig:
        """Return the writer of a name, one without an entry with its defaults.

        Raises:
            KeyError: no writer has this name; a parsed config names none of these.
        """
        if name in self.writers or name not in WRITERS:
            return self.writers[name]
        config = WriterConfig.model_validate({"kind": name})
        config._name = name
        return config
