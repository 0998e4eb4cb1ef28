"""The rollout servers of each of verl's trainers: asleep while a stage trains, then awake with its weights."""

from __future__ import annotations

from dataclasses import dataclass

from verl_ee.trainer.protocols import SeparateTrainer, ServerWeights

STEP = 0
"""Version of the weights that stages give to the servers: GRPO's first step is 1."""


@dataclass(frozen=True)
class SharedServers:
    """Servers on the devices of the actor.

    Attributes:
        weights: verl's checkpoint manager.
    """

    weights: ServerWeights

    def sleep(self) -> None:
        """Free the memory of the servers."""
        self.weights.sleep_replicas()

    def wake(self) -> None:
        """Wake the servers with the weights of the actor."""
        self.weights.update_weights(STEP)


@dataclass(frozen=True)
class SeparateServers:
    """Servers of verl's `separate_async`: some have devices of their own, others may share those of the actor.

    Those with devices of their own serve all through the stages, so they get new weights without having slept.

    Attributes:
        trainer: verl's.
    """

    trainer: SeparateTrainer

    def sleep(self) -> None:
        """Free the memory of the servers that share a device, after the last request to them has ended."""
        self.trainer.switch_to_trainer()

    def wake(self) -> None:
        """Give all servers the weights of the actor."""
        self.trainer.standalone_checkpoint_manager.update_weights(STEP)
        present, self.trainer.global_steps = self.trainer.global_steps, STEP
        self.trainer.switch_to_rollout()
        self.trainer.global_steps = present
