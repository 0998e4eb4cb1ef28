"""Which examples each stage learns from, and for how many steps."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from verl_ee.config import EarlyExperienceConfig, Objective, StageConfig, WorldModelConfig, built
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import StoreError
from verl_ee.experience.proposers import EXPERT
from verl_ee.experience.store import ExecutedBranch, read_branches
from verl_ee.objectives.examples import Encoder, Example, ExampleSet, encode, within_length
from verl_ee.objectives.reflection.rationales import read_rationales
from verl_ee.objectives.rows import Row, imitation_rows, reflection_rows, world_model_rows
from verl_ee.objectives.schedule import optimizer_steps_of
from verl_ee.objectives.summaries import SUMMARIES_FILE as SUMMARIES
from verl_ee.objectives.summaries import SummaryRequest, read_summaries, summary_requests
from verl_ee.objectives.targets import TargetBuilder, difference_target, raw_target, summary_target, template_target

_Item = TypeVar("_Item")


class StageRows:
    """What each objective learns from, as text."""

    def __init__(
        self,
        config: EarlyExperienceConfig,
        trajectories: Sequence[ExpertTrajectory],
        stores: Mapping[str, Path],
        written: Path,
        given: Mapping[Objective, Sequence[Row]] | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            config: of the job.
            trajectories: of the expert file.
            stores: folder of each set of branches.
            written: folder of the rationales and the summaries.
            given: rows of `early_experience.examples`; an objective that has some is not built.
        """
        self._config, self._trajectories = config, trajectories
        self._stores, self._written, self._given = stores, written, given or {}

    def rows(self, objective: Objective) -> Iterable[Row]:
        """Return what a stage with this objective learns.

        Raises:
            StoreError: if branches, rationales or summaries cannot be read.
        """
        length = self._config.history_length
        if objective == "world_model":
            return self._modelled()
        if objective in self._given:
            return self._given[objective]
        if objective == "imitation":
            return imitation_rows(self._trajectories, length)
        return reflection_rows(self._trajectories, read_rationales(self._written), length)

    def summary_requests(self) -> list[SummaryRequest]:
        """Return the transitions that need a summary: those that the world model learns from, if it predicts summaries.

        Raises:
            StoreError: if branches cannot be read.
        """
        if self._config.world_model.target != "summary" or "world_model" not in built(self._config, list(self._given)):
            return []
        return summary_requests(self._trajectories, self._branches())

    def _modelled(self) -> Sequence[Row]:
        settings, given = self._config.world_model, self._given.get("world_model")
        if given is not None:
            return _sample(given, self._limit(), settings.seed)
        outcomes, texts = self._branches(), {}
        if settings.target == "summary":
            texts = read_summaries(self._written)
            outcomes = [item for item in outcomes if _summary_of(item, texts, self._written)]
        builder = target_builder(settings, texts)
        return list(world_model_rows(self._trajectories, outcomes, self._config.history_length, builder))

    def _branches(self) -> Sequence[ExecutedBranch]:
        """Return the branches that the settings and the budget of the world model let through."""
        settings = self._config.world_model
        outcomes = allowed_branches(read_branches(self._stores[settings.collect]), settings)
        return _sample(outcomes, self._limit(), settings.seed)

    def _limit(self) -> int | None:
        """Return how many branches the budget lets through, or None for all."""
        settings = self._config.world_model
        if settings.budget == "one_to_one":
            return self._size("imitation")
        imitation = next((stage for stage in self._config.stages.values() if _imitates(stage)), None)
        if settings.budget == "full" or imitation is None:
            return None
        model = next(stage for stage in self._config.stages.values() if "world_model" in stage.objectives)
        steps = round(
            settings.matched_share * optimizer_steps_of(imitation, sum(map(self._size, imitation.objectives)))
        )
        # Whole epochs, so that no step is taken beyond the budget.
        return max(1, steps // model.epochs * model.batch_size)

    def _size(self, objective: Objective) -> int:
        """Return how many examples an objective has that does not depend on the budget."""
        if objective in self._given:
            return len(self._given[objective])
        if objective == "reflection":
            return sum(item.accepted for item in read_rationales(self._written))
        return sum(len(item.steps) for item in self._trajectories)


class StageData(StageRows):
    """The examples and the length of every stage of a method."""

    def __init__(
        self,
        config: EarlyExperienceConfig,
        trajectories: Sequence[ExpertTrajectory],
        encoder: Encoder,
        stores: Mapping[str, Path],
        written: Path,
        max_length: int,
        given: Mapping[Objective, Sequence[Row]] | None = None,
        recorded: Sequence[Example] | None = None,
    ) -> None:
        """Prepare the stages.

        Args:
            config: of the job.
            trajectories: of the expert file.
            encoder: of prompts and targets.
            stores: folder of each set of branches.
            written: folder of the rationales and the summaries.
            max_length: tokens of an example.
            given: rows of `early_experience.examples`; an objective that has some is not built.
            recorded: examples of imitation, in place of the expert file's.
        """
        super().__init__(config, trajectories, stores, written, given)
        self._encoder, self._max_length, self._recorded = encoder, max_length, recorded

    def examples(self, name: str) -> ExampleSet:
        """Return what a stage learns from; a stage with several objectives has all of their examples.

        Raises:
            ExampleError: if there is nothing, or too much is over the length limit.
            StoreError: if branches, rationales or summaries cannot be read.
        """
        objectives = self._config.stages[name].objectives
        found = (example for objective in objectives for example in self._encoded(objective))
        return within_length(found, self._max_length, self._config.max_dropped, name)

    def _encoded(self, objective: Objective) -> Iterable[Example]:
        if objective == "imitation" and self._recorded is not None:
            return self._recorded
        return encode(self.rows(objective), self._encoder)

    def _size(self, objective: Objective) -> int:
        if objective == "imitation" and self._recorded is not None:
            return len(self._recorded)
        return super()._size(objective)

    def steps(self, name: str, examples: int) -> int:
        """Return the optimizer steps of a stage.

        Args:
            name: of the stage.
            examples: that it has.
        """
        stage = self._config.stages[name]
        total = optimizer_steps_of(stage, examples)
        if self._config.world_model.budget != "matched" or not _imitates(stage):
            return total
        models = [item for item in self._config.stages.values() if "world_model" in item.objectives]
        return max(1, total - sum(optimizer_steps_of(item, len(self._modelled())) for item in models))


def allowed_branches(outcomes: Sequence[ExecutedBranch], settings: WorldModelConfig) -> list[ExecutedBranch]:
    """Return the branches that the world model may learn from.

    Args:
        outcomes: of the set.
        settings: whether the expert's are among them, and how large a share may be refused actions.
    """
    kept = [item for item in outcomes if settings.include_expert_transition or item.proposer != EXPERT]
    refused = [position for position, item in enumerate(kept) if not item.valid]
    # As it is written: 0.6 / 0.4 is not 1.5 in floating point.
    share = Fraction(str(settings.max_refused))
    allowed = len(refused) if share >= 1 else int(share / (1 - share) * (len(kept) - len(refused)))
    dropped = set(random.Random(f"{settings.seed}:refused").sample(refused, max(0, len(refused) - allowed)))
    return [item for position, item in enumerate(kept) if position not in dropped]


def target_builder(settings: WorldModelConfig, summaries: Mapping[str, str] | None = None) -> TargetBuilder:
    """Return the builder of targets.

    Args:
        settings: which target.
        summaries: by transition, for those that are predicted.

    Raises:
        ConfigError: if a template has a field that does not exist.
    """
    if settings.target == "template":
        return template_target(settings.template or "")
    if settings.target == "summary":
        return summary_target(summaries or {})
    return {"raw": raw_target, "difference": difference_target}[settings.target]


def _summary_of(outcome: ExecutedBranch, texts: Mapping[str, str], folder: Path) -> str:
    if outcome.transition not in texts:
        raise StoreError(
            f"{folder / SUMMARIES} says nothing of transition {outcome.transition[:12]} (trajectory "
            f"{outcome.trajectory}, step {outcome.step}): it was written for other branches. Delete it to have them "
            "written again."
        )
    return texts[outcome.transition]


def _imitates(stage: StageConfig) -> bool:
    return "imitation" in stage.objectives


def _sample(items: Sequence[_Item], limit: int | None, seed: int) -> Sequence[_Item]:
    if limit is None:
        return items
    positions = random.Random(f"{seed}:budget").sample(range(len(items)), min(limit, len(items)))
    return [items[position] for position in sorted(positions)]
