"""verl's GRPO trainers with the stages of early experience in front of their loop."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from typing import Any

import ray
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_ee.config import StageConfig, parse
from verl_ee.config.models import ROOT
from verl_ee.errors import EarlyExperienceError, StageError
from verl_ee.objectives.examples import Encoder
from verl_ee.objectives.stage_data import StageData
from verl_ee.run.folder import RunFolder
from verl_ee.run.state import HAND_OVER
from verl_ee.run.summary import RunSummary, outcomes_of
from verl_ee.trainer.actor.reference import Reference
from verl_ee.trainer.actor.worker import EarlyExperienceWorker
from verl_ee.trainer.checkpoints import check_space, kept_by_grpo, older_is_kept
from verl_ee.trainer.data_preparation import DataPreparation
from verl_ee.trainer.mid_training import MidTraining, last_line, save_failed
from verl_ee.trainer.rollout.sampler import Sampler
from verl_ee.trainer.rollout.tokens import encoder_for
from verl_ee.trainer.stage_log import StageLog, stage_logger

logger = stage_logger(__name__)


class EarlyExperience(PPOTrainer):
    """Collect, mid-train, hand over; then the GRPO of the verl trainer that it is combined with."""

    logger: Any
    global_steps: int
    verl_mode: str
    """verl's name of that trainer."""
    worker: type[EarlyExperienceWorker] = EarlyExperienceWorker

    def __init__(self, config: DictConfig) -> None:
        self.early = parse(OmegaConf.to_container(config[ROOT], resolve=True))  # type: ignore[arg-type]
        self.folder = RunFolder.of(config, self.early)
        self._lock = self.folder.hold()
        self.summary = RunSummary.load(self.folder.own / "summary.json", seed=int(config.data.get("seed") or 0))
        with open_dict(config):
            # verl compares the mode with "sync" to choose buffers and checkpoints; from here on it is verl's own.
            config.trainer.v1.trainer_mode = self.verl_mode
            if not self._stages_done(config) and "base" in self.summary.evaluated_stages():
                # An earlier attempt evaluated the model that the stages start from.
                config.trainer.val_before_train = False
        self.stage = "grpo" if self._stages_done(config) else "base"
        self._stage_began = time.monotonic()
        self._episodes: Counter[str] = Counter()
        self._outcomes: dict[str, dict[str, bool]] = {}
        super().__init__(config)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in (Role.ActorRolloutRef, Role.ActorRollout, Role.Actor, Role.RefPolicy):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(self.worker)

    def _stages_done(self, config: DictConfig) -> bool:
        """Whether this job only goes on with GRPO: of its own run, or of the checkpoint that a user names."""
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

    def fit(self, agent_loop_manager: Any) -> None:
        """Run every stage, then GRPO; an exception is left in `error.json` and raised as one of ours."""
        self.folder.clear_error()
        self._stage_began = time.monotonic()
        try:
            super().fit(agent_loop_manager)
        except EarlyExperienceError as error:
            self.folder.write_error(error, self.stage)
            raise
        except Exception as error:
            failure = StageError(f"Stage {self.stage!r} failed: {last_line(error)}")
            self.folder.write_error(failure, self.stage)
            raise failure from error

    def on_train_begin(self) -> None:
        """Run the stages, where verl has built everything and validated the model it starts from."""
        trained = sum(item.step for item in self.folder.trained().values())
        self.logger = StageLog(self.logger, self.folder.own / "metrics.jsonl", trained, self.global_steps - 1)
        if not self._stages_done(self.config):
            self._run_stages()
        self._begin("grpo")
        super().on_train_begin()

    def _run_stages(self) -> None:
        sources = DataPreparation(
            self.config,
            self.early,
            self.folder,
            self.summary,
            self.tokenizer,
            self._encoder(),
            self.get_llm_client,
            lambda: Sampler.of(self),
            self._begin,
        )
        curriculum = sources.curriculum()
        self._check_space()
        training = MidTraining(
            self.actor_rollout_wg,
            self.folder,
            self.logger,
            self.early.save_freq,
            self._row_multiple(),
            self._pad_token_id(),
        )
        before: str | None = None
        for name, stage in self.early.stages.items():
            if name not in self.folder.finished():
                self._begin(name)
                self._train(training, curriculum, name, stage, before)
            before = name

    def _train(
        self, training: MidTraining, curriculum: StageData, name: str, stage: StageConfig, before: str | None
    ) -> None:
        """Train and evaluate a stage; the servers sleep until it is trained. The last one hands over to GRPO."""
        found = curriculum.examples(name)
        if found.dropped:
            total = len(found.examples) + len(found.dropped)
            logger.warning(f"{name}: {len(found.dropped)} of {total} examples are too long and left out")
        self.checkpoint_manager.sleep_replicas()
        steps = curriculum.steps(name, len(found.examples))
        training.run(name, stage, found.examples, steps, before, self.early.resume == "force")
        last = name == list(self.early.stages)[-1]
        if last:
            self._hand_over()
        self.checkpoint_manager.update_weights(0)
        if self.early.evaluate:
            self._validate()
        self.folder.finish(*([name, HAND_OVER] if last else [name]))

    def _encoder(self) -> Encoder:
        model_type = getattr(self._model_config(), "model_type", None)
        return encoder_for(self.tokenizer, model_type, self.config.data.get("apply_chat_template_kwargs", {}))

    def _check_space(self) -> None:
        """Refuse to train what could not be saved in the end."""
        size = sum(self.actor_rollout_wg.checkpoint_bytes())
        left = len([name for name in self.early.stages if name not in self.folder.finished()])
        # Besides one per stage: the hand-over, and a stage's older one until its newer one is complete.
        stages = left + 1 + bool(self.early.save_freq)
        check_space(self.folder.root, size, stages, kept_by_grpo(self.config.trainer, self.total_training_steps))

    def _hand_over(self) -> None:
        """Save the mid-trained policy as `global_step_0`, with GRPO's optimizer and schedule, and anchor the reference.

        The fingerprints that are logged show that the same weights are on each side.
        """
        before = self.actor_rollout_wg.policy_fingerprint()
        self.actor_rollout_wg.hand_over(self.early.hand_over.optimizer == "keep")
        step, self.global_steps = self.global_steps, 0
        self._save_checkpoint()
        self.global_steps = step
        path = self.folder.hand_over
        self.actor_rollout_wg.exempt_from_rotation(str(path / "actor"))
        reference = Reference.of(self, self.early.hand_over.reference)
        anchored = reference.anchor(path / "actor")
        after = self.actor_rollout_wg.policy_fingerprint()
        logger.warning(
            f"hand-over: policy {_joined(before)} -> {_joined(after)}, reference {anchored}; saved in {path}"
        )
        self.summary.checkpoint("hand_over", path)

    def _begin(self, stage: str) -> None:
        self.stage, self._stage_began = stage, time.monotonic()

    def _validate(self) -> dict[str, float]:
        began = time.monotonic()
        seconds = began - self._stage_began
        metrics = super()._validate()
        # Evaluating is not part of any stage.
        self._stage_began += time.monotonic() - began
        success = {name: _success(metrics, name) for name in self._episodes}
        if self.stage == "grpo" and self.global_steps == 0:
            # A job that only goes on with GRPO begins with the policy of the last stage.
            last = list(self.early.stages)[-1]
            self.summary.evaluated(last, None, success, self._episodes, self._outcomes)
        else:
            self.summary.evaluated(self.stage, seconds, success, self._episodes, self._outcomes)
        return metrics

    def _val_metrics_update(
        self,
        data_sources: Any,
        sample_uids: Any,
        reward_extra_infos_dict: Any,
        sample_turns: Any,
        expected_acc_counts: dict[tuple[str, str], int],
    ) -> dict[str, float]:
        self._episodes = Counter()
        for (data_source, _), repeats in expected_acc_counts.items():
            self._episodes[data_source] += repeats
        self._outcomes = outcomes_of(data_sources, reward_extra_infos_dict)
        return super()._val_metrics_update(
            data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=expected_acc_counts
        )

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        actor = self.config.actor_rollout_ref.actor
        rows = actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n
        metrics["early_experience/optimizer_steps"] = len(batch) // rows * actor.ppo_epochs
        return super()._update_actor(batch, metrics)

    def _compute_ref_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_ref_log_prob(batch, metrics)
        fields = ["old_log_probs", "ref_log_prob", "response_mask"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        learned = data["response_mask"].values().bool()
        gap = (data["old_log_probs"].values() - data["ref_log_prob"].values()).abs()[learned]
        metrics["early_experience/reference_gap"] = float(gap.max())
        return batch

    def _save_checkpoint(self) -> None:
        path = self.folder.root / f"global_step_{self.global_steps}"
        try:
            super()._save_checkpoint()
        except Exception as error:  # whatever torch raises in a worker when it cannot write, wrapped by Ray
            kept = older_is_kept(self.folder.root, self.global_steps)
            failure = save_failed(path / "actor", error, kept)
            if kept:
                shutil.rmtree(path, ignore_errors=True)
            raise failure from error
        if self.global_steps > 0:
            self.summary.checkpoint("grpo", path)

    def _row_multiple(self) -> int:
        group = self.actor_rollout_wg
        if "actor" not in group._dispatch_info:
            group._dispatch_info["actor"] = group._query_dispatch_info("actor")
        workers = max(group._dispatch_info["actor"]) + 1
        actor = self.config.actor_rollout_ref.actor
        return workers if actor.use_dynamic_bsz else workers * actor.ppo_micro_batch_size_per_gpu

    def _pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def _model_config(self) -> Any:
        from verl.utils.config import omega_conf_to_dataclass

        return omega_conf_to_dataclass(self.config.actor_rollout_ref.model).hf_config


def _joined(fingerprints: list[str]) -> str:
    """Return the fingerprints of all workers as one text."""
    return "+".join(dict.fromkeys(fingerprints))


def _success(metrics: dict[str, Any], data_source: str) -> float:
    """Return verl's core metric of a data source: `acc` where the agent loop reports it, else the reward."""
    prefix = f"val-core/{data_source}/"
    means = (float(value) for key, value in metrics.items() if key.startswith(prefix) and "/mean@" in key)
    return next(means, float("nan"))
