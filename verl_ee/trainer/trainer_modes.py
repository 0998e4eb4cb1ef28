"""Early experience in front of each of verl's trainers, under a trainer mode of its own."""

from __future__ import annotations

from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_ee.config.group import TRAINER_MODES
from verl_ee.trainer.actor.worker import EarlyExperienceWorker
from verl_ee.trainer.rollout.servers import SeparateServers
from verl_ee.trainer.trainer import EarlyExperience


class DetachedEarlyExperienceWorker(EarlyExperienceWorker, DetachActorWorker):
    """The worker of verl's `separate_async`, which can put weights aside and bring them back."""


@register_trainer(TRAINER_MODES["sync"])
class EarlyExperienceTrainer(EarlyExperience, PPOTrainerSync):
    """In front of verl's `sync`: rollout and training take turns on the same devices."""

    verl_mode = "sync"


@register_trainer(TRAINER_MODES["colocate_async"])
class EarlyExperienceColocateAsync(EarlyExperience, PPOTrainerColocateAsync):
    """In front of verl's `colocate_async`: as `sync`, with partial rollouts."""

    verl_mode = "colocate_async"


@register_trainer(TRAINER_MODES["separate_async"])
class EarlyExperienceSeparateAsync(EarlyExperience, PPOTrainerSeparateAsync):
    """In front of verl's `separate_async`: rollout and training on devices of their own."""

    verl_mode = "separate_async"
    worker = DetachedEarlyExperienceWorker

    def _servers(self) -> SeparateServers:
        return SeparateServers(self)
