"""The stages of a job in their order: data, mid-training, hand-over to GRPO, and an evaluation after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from verl_ee.config import EarlyExperienceConfig
from verl_ee.experience.progress import plugin_logger
from verl_ee.objectives.files.example_files import ExampleSet
from verl_ee.objectives.stage_data import StageData
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import HAND_OVER
from verl_ee.run.summary import RunSummary
from verl_ee.trainer.actor.reference import Reference, joined_fingerprints
from verl_ee.trainer.checkpoints import check_space
from verl_ee.trainer.data.data_preparation import DataPreparation
from verl_ee.trainer.evaluation import StageEvaluation
from verl_ee.trainer.mid_training import MidTraining
from verl_ee.trainer.protocols import ActorWorkers, Servers

logger = plugin_logger(__name__)


@dataclass(frozen=True)
class StageRunner:
    """Runs every stage of a job that has not finished, on the workers and servers that verl has built.

    Attributes:
        early: `early_experience` of the job.
        folder: folder of the run.
        summary: summary of the run.
        preparation: makes the data.
        training: trains a stage.
        evaluation: is told which stage is under way.
        workers: worker group of the actor.
        servers: puts the rollout servers to sleep, and wakes them with new weights.
        reference: reference of GRPO.
        grpo_checkpoints: number of checkpoints that verl keeps at a time during GRPO.
        validate: evaluates the policy.
        save_checkpoint: saves verl's checkpoint of a step of GRPO.
    """

    early: EarlyExperienceConfig
    folder: RunFolder
    summary: RunSummary
    preparation: DataPreparation
    training: MidTraining
    evaluation: StageEvaluation
    workers: ActorWorkers
    servers: Servers
    reference: Reference
    grpo_checkpoints: int
    validate: Callable[[], object]
    save_checkpoint: Callable[[int], object]

    def run(self) -> None:
        """Prepare the data, then train every stage that has not finished; the last one hands over to GRPO.

        Raises:
            EarlyExperienceError: if a stage fails; the stages before it are kept.
        """
        data = self.preparation.stage_data()
        self._check_space()
        previous: str | None = None
        for name in self.early.stages:
            if name not in self.folder.finished():
                self.evaluation.begin(name)
                self._run_stage(data, name, previous)
            previous = name

    def _run_stage(self, data: StageData, name: str, previous: str | None) -> None:
        """Train and evaluate a stage; the servers sleep until it is trained."""
        examples = self._examples(data, name)
        self.servers.sleep()
        force = self.early.resume == "force"
        steps = data.steps(name, len(examples))
        self.training.run(name, self.early.stages[name], examples, steps, previous, force)
        is_last = name == list(self.early.stages)[-1]
        if is_last:
            self._hand_over()
        self.servers.wake()
        if self.early.evaluate:
            self.validate()
        self.folder.finish(*([name, HAND_OVER] if is_last else [name]))

    def _examples(self, data: StageData, name: str) -> ExampleSet:
        """Return the examples of a stage that fit, and log how many do not."""
        examples = data.examples(name)
        if examples.dropped:
            total = len(examples) + examples.dropped
            logger.warning(f"{name}: {examples.dropped} of {total} examples are too long and left out")
        return examples

    def _check_space(self) -> None:
        """Refuse to train a policy that could not be saved in the end."""
        size = sum(self.workers.checkpoint_bytes())
        remaining = len([name for name in self.early.stages if name not in self.folder.finished()])
        # Besides one per stage: the hand-over, and a stage's older one until its newer one is complete.
        stage_checkpoints = remaining + 1 + bool(self.early.save_freq)
        check_space(self.folder.root, size, stage_checkpoints, self.grpo_checkpoints)

    def _hand_over(self) -> None:
        """Save the mid-trained policy as `global_step_0`, with GRPO's optimizer and schedule, and anchor the reference.

        The fingerprints that are logged show that the same weights are on each side.
        """
        before = joined_fingerprints(self.workers.policy_fingerprint())
        self.workers.hand_over(self.early.hand_over.optimizer == "keep")
        self.save_checkpoint(0)
        checkpoint = self.folder.hand_over
        self.workers.exempt_from_rotation(str(checkpoint / "actor"))
        reference = self.reference.anchor(checkpoint / "actor")
        after = joined_fingerprints(self.workers.policy_fingerprint())
        logger.info(f"hand-over: policy {before} -> {after}, reference {reference}; saved in {checkpoint}")
        self.summary.record_checkpoint(HAND_OVER, checkpoint)
