"""verl's GRPO trainers with the stages of early experience in front of their loop."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import ray
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.config import omega_conf_to_dataclass

from verl_ee.config import ROOT, early_experience_of
from verl_ee.errors import StageError, own_error
from verl_ee.objectives.encoder import Encoder
from verl_ee.run.folder import RunFolder
from verl_ee.run.metrics import OPTIMIZER_STEPS
from verl_ee.run.stage_result import BASE, GRPO
from verl_ee.run.state import HAND_OVER
from verl_ee.run.summary import RunSummary
from verl_ee.trainer.actor.micro_batches import BatchLimits, pads_rows
from verl_ee.trainer.actor.reference import Reference
from verl_ee.trainer.actor.worker import EarlyExperienceWorker
from verl_ee.trainer.checkpoints import kept_by_grpo, older_is_kept
from verl_ee.trainer.checks.nodes import RUN, check_nodes, shared_paths
from verl_ee.trainer.data.data_preparation import DataPreparation
from verl_ee.trainer.episode_counts import EpisodeCounts, FailureBudget
from verl_ee.trainer.evaluation import StageEvaluation
from verl_ee.trainer.mid_training import MidTraining, last_line, save_failed
from verl_ee.trainer.protocols import Servers, Tracking
from verl_ee.trainer.rollout.sampler import Sampler
from verl_ee.trainer.rollout.servers import SharedServers
from verl_ee.trainer.rollout.tokens import encoder_for
from verl_ee.trainer.stage_log import StageLog
from verl_ee.trainer.stages import StageRunner
from verl_ee.trainer.step_episodes import episode_infos, without_failed

if TYPE_CHECKING:
    from transfer_queue import KVBatchMeta
    from verl.experimental.agent_loop import AgentLoopManager


class EarlyExperience(PPOTrainer):
    """Collect, mid-train, hand over; then the GRPO of the verl trainer that it is combined with."""

    logger: Tracking
    verl_mode: str
    """verl's name of that trainer."""
    worker: type[EarlyExperienceWorker] = EarlyExperienceWorker

    def __init__(self, config: DictConfig) -> None:
        self.early = early_experience_of(config)
        self.folder = RunFolder.of(config, self.early)
        self._lock = self.folder.hold()
        check_nodes(shared_paths(config) | {RUN: str(self.folder.root)})
        self.summary = RunSummary.load(self.folder.summary_path, seed=int(config.data.get("seed") or 0))
        stages_done = self._stages_done(config)
        with open_dict(config):
            # verl compares the mode with "sync" to choose buffers and checkpoints; from here on it is verl's own.
            config.trainer.v1.trainer_mode = self.verl_mode
            # One spelling: verl deletes older checkpoints by their path, and knows no `~`.
            config.trainer.default_local_dir = str(self.folder.root)
            # The texts of files are read once, so that rollouts anywhere have those of the stages.
            for key, value in self.early.prompt.model_dump().items():
                text = re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
                OmegaConf.update(config, f"{ROOT}.prompt.{key}", text)
            if not stages_done and self.summary.stage(BASE) is not None:
                # An earlier attempt evaluated the model that the stages start from.
                config.trainer.val_before_train = False
        last_stage = list(self.early.stages)[-1]
        self._failures = FailureBudget(self.early)
        self.evaluation = StageEvaluation(self.summary, last_stage, GRPO if stages_done else BASE, self._failures)
        super().__init__(config)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in (Role.ActorRolloutRef, Role.ActorRollout, Role.Actor, Role.RefPolicy):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(self.worker)

    def _stages_done(self, config: DictConfig) -> bool:
        """Return whether this job only goes on with GRPO: of its own run, or of the checkpoint that a user names."""
        return HAND_OVER in self.folder.finished() or config.trainer.resume_mode == "resume_path"

    def _load_checkpoint(self) -> None:
        if not self._stages_done(self.config):
            # A job killed while it handed over has left a global_step_0; its stages go on from their own checkpoints.
            self.global_steps = 0
            return
        reference = Reference.of(self, self.early.hand_over.reference)
        anchor = reference.checkpoint(self.folder)
        reference.before_loading(anchor)
        super()._load_checkpoint()
        reference.after_loading(anchor)

    def fit(self, agent_loop_manager: AgentLoopManager) -> None:
        """Run every stage, then GRPO.

        Raises:
            EarlyExperienceError: for any exception; `error.json` has its message as well.
        """
        self.folder.clear_error()
        self.evaluation.begin(self.evaluation.stage)
        try:
            super().fit(agent_loop_manager)
        except Exception as error:
            # One of ours that comes from a worker is wrapped by Ray, with a traceback for its text.
            failure = own_error(error) or StageError(f"Stage {self.evaluation.stage!r} failed: {last_line(error)}")
            self.folder.write_error(failure, self.evaluation.stage)
            if failure is error:
                raise
            raise failure from error

    def on_train_begin(self) -> None:
        """Run the stages, where verl has built everything and validated the model it starts from."""
        steps = sum(progress.step for progress in self.folder.trained().values())
        log = StageLog(self.logger, self.folder.metrics_path, steps, self.global_steps - 1)
        # It hands on every other attribute of verl's tracking by `__getattr__`, which types cannot tell.
        self.logger = cast(Tracking, log)
        if not self._stages_done(self.config):
            self._stages(log).run()
        self.evaluation.begin(GRPO)
        log.begin_grpo(self.total_training_steps)
        super().on_train_begin()

    def _stages(self, log: StageLog) -> StageRunner:
        workers = self.actor_rollout_wg
        return StageRunner(
            self.early,
            self.folder,
            self.summary,
            self._preparation(),
            MidTraining(workers, self.folder, log, self.early.save_freq, self._batch_limits(), self._pad_token_id()),
            self.evaluation,
            workers,
            self._servers(),
            Reference.of(self, self.early.hand_over.reference),
            kept_by_grpo(self.config.trainer, self.total_training_steps),
            self._validate,
            self._save_step,
        )

    def _preparation(self) -> DataPreparation:
        return DataPreparation(
            self.config,
            self.early,
            self.folder,
            self.summary,
            self.tokenizer,
            self._encoder(),
            self.get_llm_client,
            lambda: Sampler.of(self),
            self.evaluation.begin,
        )

    def _encoder(self) -> Encoder:
        model_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.model).hf_config
        model_type = getattr(model_config, "model_type", None)
        kwargs = self.config.data.get("apply_chat_template_kwargs", {})
        return encoder_for(
            self.tokenizer, model_type, kwargs, self.early.prompt.date, self.config.actor_rollout_ref.model.path
        )

    def _servers(self) -> Servers:
        return SharedServers(self.checkpoint_manager)

    def _batch_limits(self) -> BatchLimits:
        group = self.actor_rollout_wg
        if "actor" not in group._dispatch_info:
            group._dispatch_info["actor"] = group._query_dispatch_info("actor")
        actor = self.config.actor_rollout_ref.actor
        by_tokens = actor.use_dynamic_bsz
        return BatchLimits(
            workers=max(group._dispatch_info["actor"]) + 1,
            rows=None if by_tokens else actor.ppo_micro_batch_size_per_gpu,
            tokens=actor.ppo_max_token_len_per_gpu if by_tokens else None,
            pads=pads_rows(self.config.actor_rollout_ref),
        )

    def _pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def _save_step(self, step: int) -> None:
        """Save verl's checkpoint under another step than the present one."""
        present, self.global_steps = self.global_steps, step
        self._save_checkpoint()
        self.global_steps = present

    def _save_checkpoint(self) -> None:
        path = self.folder.grpo_checkpoint(self.global_steps)
        try:
            super()._save_checkpoint()
        except Exception as error:  # whatever torch raises in a worker when it cannot write, wrapped by Ray
            is_older_kept = older_is_kept(self.folder.root, self.global_steps)
            failure = save_failed(path / "actor", error, is_older_kept)
            if is_older_kept:
                shutil.rmtree(path, ignore_errors=True)
            raise failure from error
        if self.global_steps > 0:
            self.summary.record_checkpoint(GRPO, path)

    def _validate(self) -> dict[str, float]:
        return self.evaluation.record(super()._validate, self.global_steps)

    def _val_metrics_update(
        self,
        data_sources: Sequence[str],
        sample_uids: Sequence[str],
        reward_extra_infos_dict: Mapping[str, Sequence[object]],
        sample_turns: Sequence[int],
        expected_acc_counts: Mapping[tuple[str, str], int],
    ) -> dict[str, float]:
        self.evaluation.note_episodes(data_sources, reward_extra_infos_dict, expected_acc_counts)
        return super()._val_metrics_update(
            data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=expected_acc_counts
        )

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict[str, float], **options: object) -> KVBatchMeta:
        # The first thing that happens to the episodes of a step: later there is padding among them.
        infos = episode_infos(batch)
        counts = EpisodeCounts.of(infos.values())
        metrics.update(counts.metrics())
        self._failures.check(counts, f"step {self.global_steps} of {GRPO}")
        return super()._balance_batch(without_failed(batch, infos), metrics=metrics, **options)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, float]) -> KVBatchMeta:
        actor = self.config.actor_rollout_ref.actor
        rows = actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n
        metrics[OPTIMIZER_STEPS] = len(batch) // rows * actor.ppo_epochs
        return super()._update_actor(batch, metrics)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict[str, float]) -> KVBatchMeta:
        batch = super()._compute_ref_log_prob(batch, metrics)
        fields = ["old_log_probs", "ref_log_prob", "response_mask"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        learned = data["response_mask"].values().bool()
        gap = (data["old_log_probs"].values() - data["ref_log_prob"].values()).abs()[learned]
        metrics["early_experience/reference_gap"] = float(gap.max())
        return batch
