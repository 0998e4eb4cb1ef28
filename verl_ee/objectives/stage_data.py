"""The examples of each stage, and the number of its optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from verl_ee.config import EarlyExperienceConfig, Objective, StageConfig, built
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import StoreError
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.experience.store import BRANCHES, TRANSITIONS, read_branches
from verl_ee.objectives.branch_selection import Item, allowed_branches, picked, within_budget, within_states
from verl_ee.objectives.episode_rows import episode_rows
from verl_ee.objectives.examples import Example, check_length
from verl_ee.objectives.files.example_files import ExampleFiles, ExampleSet
from verl_ee.objectives.reflection.rationales import RATIONALES_FILE, read_rationales
from verl_ee.objectives.rows import Row, imitation_rows, reflection_rows, world_model_rows
from verl_ee.objectives.schedule import most_examples, optimizer_steps_of, remaining_steps
from verl_ee.objectives.summaries import SUMMARIES_FILE, SummaryRequest, read_summaries, summary_requests
from verl_ee.objectives.targets import target_builder
from verl_ee.prompts.format import PromptFormat


class StageRows:
    """The rows of each objective of a job: the text that it learns."""

    def __init__(
        self,
        config: EarlyExperienceConfig,
        trajectories: Sequence[ExpertTrajectory],
        form: PromptFormat,
        stores: Mapping[str, Path],
        texts: Path,
        given_rows: Mapping[Objective, Sequence[Row]] | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            config: config of the job.
            trajectories: trajectories of the expert file.
            form: form of prompts and responses.
            stores: folder of each set of branches.
            texts: folder of the rationales and the summaries.
            given_rows: rows of `early_experience.examples`; an objective that has some is not built.
        """
        self._config = config
        self._trajectories = trajectories
        self._form = form
        self._stores = stores
        self._texts = texts
        self._given_rows = given_rows or {}

    def rows(self, objective: Objective) -> Iterable[Row]:
        """Return the rows that a stage with this objective learns.

        Raises:
            StoreError: if branches, rationales or summaries cannot be read.
        """
        if objective == "world_model":
            return self._world_model_rows()
        if objective in self._given_rows:
            return self._given_rows[objective]
        history_length = self._config.history_length
        if objective == "imitation" and self._config.samples == "episode":
            return episode_rows(self._trajectories, self._form)
        if objective == "imitation":
            return imitation_rows(self._trajectories, history_length, self._form)
        return reflection_rows(self._trajectories, read_rationales(self._texts), history_length, self._form)

    def summary_requests(self) -> list[SummaryRequest]:
        """Return the transitions that need a summary: those of the world model, if it predicts summaries.

        Raises:
            StoreError: if branches cannot be read.
        """
        predicts_summaries = self._config.world_model.target == "summary"
        if not predicts_summaries or "world_model" not in built(self._config, list(self._given_rows)):
            return []
        return summary_requests(self._trajectories, self._branches)

    def row_count(self, objective: Objective) -> int:
        """Return how many rows a stage with this objective learns.

        Raises:
            StoreError: if branches or rationales cannot be read.
        """
        if objective != "world_model":
            return self._example_count(objective)
        given_rows = self._given_rows.get("world_model")
        return len(self._learned_branches()[0] if given_rows is None else self._within_budget(given_rows))

    def _world_model_rows(self) -> Iterable[Row]:
        given_rows = self._given_rows.get("world_model")
        if given_rows is not None:
            return self._within_budget(given_rows)
        branches, summaries = self._learned_branches()
        builder = target_builder(self._config.world_model, summaries)
        return world_model_rows(self._trajectories, branches, self._config.history_length, self._form, builder)

    def _learned_branches(self) -> tuple[Sequence[ExecutedBranch], Mapping[str, str]]:
        """Return the branches that the world model learns, and the summaries that it predicts, if it does."""
        branches = self._branches
        if self._config.world_model.target != "summary":
            return branches, {}
        summaries = read_summaries(self._texts)
        told = [index for index, branch in enumerate(branches) if self._summary_of(branch, summaries)]
        return picked(branches, told), summaries

    @cached_property
    def _branches(self) -> Sequence[ExecutedBranch]:
        """The branches that the settings and the budget of the world model let through."""
        config = self._config.world_model
        branches = within_states(read_branches(self._stores[config.collect]), self._trajectories, config)
        return self._within_budget(allowed_branches(branches, config))

    def _within_budget(self, items: Sequence[Item]) -> Sequence[Item]:
        return within_budget(items, self._budget(), self._config.world_model.seed)

    def _summary_of(self, branch: ExecutedBranch, summaries: Mapping[str, str]) -> str:
        if branch.transition not in summaries:
            raise StoreError(
                f"{self._texts / SUMMARIES_FILE} says nothing of transition {branch.transition[:12]} (trajectory "
                f"{branch.ref.trajectory}, step {branch.ref.step}): it was written for other branches. Delete it to "
                "have them written again."
            )
        return summaries[branch.transition]

    def _budget(self) -> int | None:
        """Return how many branches the budget of the world model lets through, or None for all."""
        config = self._config.world_model
        if config.budget == "one_to_one":
            return self._state_count()
        imitation = self._stages_with("imitation")
        if config.budget == "full" or not imitation:
            return None
        steps = round(config.matched_share * sum(map(self._steps_alone, imitation)))
        return most_examples(self._stages_with("world_model"), steps)

    def _stages_with(self, objective: Objective) -> list[StageConfig]:
        return [stage for stage in self._config.stages.values() if objective in stage.objectives]

    def _steps_alone(self, stage: StageConfig) -> int:
        """Return the steps of a stage of imitation if no world model took any of them."""
        return optimizer_steps_of(stage, sum(map(self._example_count, stage.objectives)))

    def _example_count(self, objective: Objective) -> int:
        """Return the number of examples of an objective other than the world model, whose number the budget sets."""
        if objective in self._given_rows:
            return len(self._given_rows[objective])
        if objective == "reflection":
            return sum(rationale.accepted for rationale in read_rationales(self._texts))
        if self._config.samples == "episode":
            return sum(any(not step.solved for step in trajectory.steps) for trajectory in self._trajectories)
        return self._state_count()

    def _state_count(self) -> int:
        """Return the number of examples of imitation that are one turn each."""
        if "imitation" in self._given_rows:
            return len(self._given_rows["imitation"])
        return sum(not step.solved for trajectory in self._trajectories for step in trajectory.steps)


class StageData(StageRows):
    """The examples and the number of steps of every stage of a job."""

    def __init__(
        self,
        config: EarlyExperienceConfig,
        trajectories: Sequence[ExpertTrajectory],
        form: PromptFormat,
        files: ExampleFiles,
        stores: Mapping[str, Path],
        texts: Path,
        given_rows: Mapping[Objective, Sequence[Row]] | None = None,
        recorded: Sequence[Example] | None = None,
    ) -> None:
        """Prepare the stages.

        Args:
            config: config of the job.
            trajectories: trajectories of the expert file.
            form: form of prompts and responses, in which texts of an environment hold no control tokens.
            files: makes and keeps the examples.
            stores: folder of each set of branches.
            texts: folder of the rationales and the summaries.
            given_rows: rows of `early_experience.examples`; an objective that has some is not built.
            recorded: examples of imitation, in place of the expert file's.
        """
        super().__init__(config, trajectories, form, stores, texts, given_rows)
        self._files, self._recorded = files, recorded

    def examples(self, name: str) -> ExampleSet:
        """Return the examples of a stage; a stage with several objectives has those of all.

        Raises:
            ExampleError: if there is nothing, or too much is over the length limit.
            StoreError: if branches, rationales or summaries cannot be read.
        """
        objectives = self._config.stages[name].objectives
        examples = self._files.examples(
            name,
            self._sources(objectives),
            {objective: partial(self._learned, objective) for objective in objectives},
            {objective: self.row_count(objective) for objective in objectives},
            list(self._given_rows),
        )
        check_length(len(examples), examples.dropped, examples.shown, self._config.max_dropped, name)
        return examples

    def steps(self, name: str, example_count: int) -> int:
        """Return the number of optimizer steps of a stage.

        Args:
            name: name of the stage.
            example_count: number of its examples.
        """
        stage = self._config.stages[name]
        steps = optimizer_steps_of(stage, example_count)
        world_model_stages = self._stages_with("world_model")
        is_matched = self._config.world_model.budget == "matched" and bool(world_model_stages)
        if not is_matched or "imitation" not in stage.objectives:
            return steps
        stages = {key: item for key, item in self._config.stages.items() if "imitation" in item.objectives}
        alone = {key: steps if key == name else self._steps_alone(item) for key, item in stages.items()}
        learned = self.row_count("world_model")
        taken = sum(optimizer_steps_of(item, learned) for item in world_model_stages)
        return dict(zip(alone, remaining_steps(list(alone.values()), taken), strict=True))[name]

    def _learned(self, objective: Objective) -> Iterable[Row | Example]:
        if objective == "imitation" and self._recorded is not None:
            return self._recorded
        return self.rows(objective)

    def _sources(self, objectives: Sequence[Objective]) -> list[Path]:
        """Return the files of the run that examples of some objectives are made of."""
        built_here = [item for item in objectives if item not in self._given_rows]
        paths = [self._texts / RATIONALES_FILE] if "reflection" in built_here else []
        if "world_model" in built_here:
            store = self._stores[self._config.world_model.collect]
            paths += [store / BRANCHES, store / TRANSITIONS]
            paths += [self._texts / SUMMARIES_FILE] if self._config.world_model.target == "summary" else []
        return paths

    def _example_count(self, objective: Objective) -> int:
        if objective == "imitation" and self._recorded is not None:
            return len(self._recorded)
        return super()._example_count(objective)

    def _state_count(self) -> int:
        return super()._state_count() if self._recorded is None else len(self._recorded)
