"""The keys under `early_experience.*`: names, types, ranges, defaults."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from verl_ee.config.base import ROOT, Fraction, FrozenModel
from verl_ee.config.collecting import CollectConfig, EnvironmentConfig
from verl_ee.config.objectives import MIN_ACCEPTED, WRITERS, ReflectionConfig, WorldModelConfig, WriterConfig
from verl_ee.errors import ConfigError

FILE_PREFIX = "file:"
"""A text of a prompt that begins so is the path of a file that holds it."""
Objective = Literal["world_model", "imitation", "reflection"]
ExpertsFilter = Literal["successful", "all"]
RESERVED = (
    "base",
    "complete",
    "collect",
    "reflect",
    "summarise",
    "hand_over",
    "grpo",
    "store",
    "cache",
    "encoded",
    "lock",
)
"""Names that a stage may not have: other stages and folders of a run have them."""


def _text(value: object) -> object:
    """Return a text of a prompt: the content of the file that it names, or itself."""
    if not isinstance(value, str) or not value.startswith(FILE_PREFIX):
        return value
    try:
        text = Path(value.removeprefix(FILE_PREFIX)).expanduser().read_text(encoding="utf-8").strip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{ROOT}.prompt: {value!r} cannot be read ({reason}). Name a text file.") from None
    if text.startswith(FILE_PREFIX):
        raise ConfigError(f"{ROOT}.prompt: the text in {value!r} begins with {FILE_PREFIX!r}. Begin it otherwise.")
    return text


def _iso_date(value: str) -> str:
    """Return a day as it is written, year first."""
    date.fromisoformat(value)
    return value


PromptText = Annotated[str | None, BeforeValidator(_text)]


class PromptConfig(FrozenModel):
    """Form of prompts and responses, and what prompts say besides the state (docs/prompts.md)."""

    format: str = "text"
    """`text`: one user message, `Action:` in the response. `tagged`: one user message, `<think>` and `<action>`.
    `react`: a growing chat of observation, thought and action. `module:Class`: your own."""
    system: PromptText = None
    """System message; empty: none, null: the format's. `file:PATH` reads the text from a file, here and in the other
    texts."""
    instruction: PromptText = None
    """Text that tells the policy how to answer; empty: nothing, null: the format's."""
    template: PromptText = None
    """Jinja template of the user message, in place of the format's; of each of them in `react`."""
    thoughts_in_history: bool | None = None
    """Whether past turns show thoughts; null: in `react` alone."""
    max_listed: Annotated[int, Field(ge=0)] | None = None
    """Listed actions in a prompt at most; 0: no list, null: all."""
    listed: Literal["first", "sampled"] = "first"
    """Which of them are shown where there are more: the first, or some by the state's own seed."""
    date: Annotated[str, AfterValidator(_iso_date)] = "2024-07-26"
    """Day that a chat template sees which reads the clock, so that a run has one prompt throughout; the default is the
    one that Llama's templates have without a clock."""


class StageConfig(FrozenModel):
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


class HandOverConfig(FrozenModel):
    """State that GRPO begins with, besides the mid-trained policy."""

    optimizer: Literal["fresh", "keep"] = "fresh"
    """Adam's moments. `fresh`: from nothing, as a job that starts from a checkpoint's weights would; those of a
    supervised loss have another scale. `keep`: as the last stage left them. Learning rate and schedule are GRPO's."""
    reference: Literal["mid_trained", "base"] = "mid_trained"
    """Policy that GRPO's KL term pulls to. `mid_trained`: the policy as it was handed over, also after a resume.
    `base`: `actor_rollout_ref.model.path`, which would undo mid-training."""


class EarlyExperienceConfig(FrozenModel):
    """Everything under `early_experience`."""

    method: str
    """Name of the method, for reports."""
    environment: EnvironmentConfig
    experts: str
    """Expert file (JSON lines, see docs/data.md)."""
    experts_filter: ExpertsFilter = "successful"
    """Trajectories of the file that are used: those that solved their task, or all."""
    prompt: PromptConfig = PromptConfig()
    max_experts: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many of the trajectories that pass `experts_filter`."""
    history_length: Annotated[int, Field(ge=0)] | None = 8
    """Past turns shown in a prompt; null: all."""
    samples: Literal["turn", "episode"] = "turn"
    """One sequence of imitation and of GRPO. `turn`: a prompt with past turns, and one answer. `episode`: a whole chat
    that grows, in which every answer is learned; it needs such a format (`react`) and `history_length=null`."""
    max_turn_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that the policy may write in one turn of an episode; null: `data.max_response_length`, which with
    `samples=episode` is the limit of the whole episode, so there this key must be set."""
    max_turns: Annotated[int, Field(ge=1)] = 30
    """Turns after which an episode ends in GRPO and in evaluation."""
    episode_reward: Literal["last", "sum"] = "last"
    """Score of an episode in GRPO and in evaluation: the environment's last reward, or the sum of all. An episode whose
    environment fails scores 0, and nothing is learned from it."""
    step_timeout: Annotated[float, Field(gt=0.0)] = 60.0
    """Seconds that a step of the environment may take in GRPO and in evaluation; a longer one ends the episode."""
    start_timeout: Annotated[float, Field(gt=0.0)] = 300.0
    """Seconds that making or resetting the environment may take there."""
    max_failed_episodes: Fraction = 0.1
    """Share of the episodes of a step of GRPO, or of an evaluation, that may fail because the environment raises or
    hangs, before the run stops. One is always allowed unless the share is 0; if all fail, the run stops."""
    max_dropped: Fraction = 0.01
    """Share of a stage's examples that may be over the length limit, and of the summaries that may be empty or cut off,
    before the run stops."""
    evaluate: bool = True
    """Run verl's validation after every stage."""
    console: Literal["full", "quiet"] = "full"
    """Output of a job. `full`: everything, the plugin's lines begin with `verl_ee |`. `quiet`: the plugin's lines
    alone; everything is in `job.log` in `trainer.default_local_dir`, and a job that fails shows its last lines."""
    stores: dict[str, str] = Field(default_factory=dict)
    """Folders that `verl-ee collect` or another run has collected, by set; such a set is not collected."""
    examples: str | None = None
    """Rows file of `verl-ee import`: an objective that has rows in it learns these, and nothing is collected for it."""
    demonstrations: str | None = None
    """Parquet file of dataset rows with the `expert_responses` to each: imitation learns what the job's own agent loops
    make of them, in place of the expert file."""
    prices: str | None = None
    """Price table (YAML, see docs/collecting.md); the summary then says what collecting came to."""
    collect: dict[str, CollectConfig] = Field(default_factory=dict)
    """Sets of branches, by name; they share what is executed."""
    writers: dict[str, WriterConfig] = Field(default_factory=dict)
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
    `force`: it goes on; what has finished stays, and a stage whose examples changed is trained again, and
    data of other experts are refused."""

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

    @property
    def min_accepted(self) -> float:
        """Share of the rationales that must pass: `reflection.min_accepted`, else the default of their writer."""
        given = self.reflection.min_accepted
        if given is not None:
            return given
        return 0.0 if self.writer(self.reflection.writer).kind == "template" else MIN_ACCEPTED
