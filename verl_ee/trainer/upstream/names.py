"""Every name of verl, vLLM and Megatron that verl_ee relies on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UpstreamName:
    """A function, class or value of another package.

    Attributes:
        module: module that defines it.
        path: dotted name inside the module.
        parameters: names of the parameters that verl_ee passes; empty where it passes none by name.
    """

    module: str
    path: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}:{self.path}"


NAMES: tuple[UpstreamName, ...] = (
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "register_trainer", ("name",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "get_trainer_cls", ("name",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_sync", "PPOTrainerSync", ("config",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_colocate_async", "PPOTrainerColocateAsync", ("config",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_separate_async", "PPOTrainerSeparateAsync", ("config",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_separate_async", "PPOTrainerSeparateAsync.switch_to_trainer", ("self",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_separate_async", "PPOTrainerSeparateAsync.switch_to_rollout", ("self",)),
    UpstreamName("verl.experimental.separation.engine_workers", "DetachActorWorker", ("config", "role")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._load_checkpoint", ("self",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._compute_ref_log_prob", ("self", "batch", "metrics")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._balance_batch", ("self", "batch", "metrics")),
    UpstreamName("transfer_queue", "kv_batch_get", ("keys", "partition_id", "select_fields")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer.fit", ("self", "agent_loop_manager")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer.on_train_begin", ("self",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._init_resource_pool_mgr", ("self",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._validate", ("self",)),
    UpstreamName(
        "verl.trainer.ppo.v1.trainer_base",
        "PPOTrainer._val_metrics_update",
        ("self", "data_sources", "sample_uids", "reward_extra_infos_dict", "expected_acc_counts"),
    ),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._save_checkpoint", ("self",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._update_actor", ("self", "batch", "metrics")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer.get_llm_client", ("self",)),
    UpstreamName(
        "verl.workers.rollout.llm_server",
        "LLMServerClient.generate",
        ("self", "request_id", "prompt_ids", "sampling_params"),
    ),
    UpstreamName("verl.workers.rollout.llm_server", "LLMServerManager.get_addresses", ("self",)),
    UpstreamName("verl.experimental.agent_loop.tool_agent_loop", "SPEC_DECODE_EXTRA_KEYS"),
    UpstreamName("verl.trainer.ppo.utils", "Role.Actor"),
    UpstreamName("verl.trainer.ppo.utils", "Role.RefPolicy"),
    UpstreamName("verl.trainer.ppo.utils", "Role.ActorRollout"),
    UpstreamName("verl.trainer.ppo.utils", "Role.ActorRolloutRef"),
    UpstreamName("verl.trainer.ppo.utils", "need_critic", ("config",)),
    UpstreamName("verl.single_controller.base.worker", "Worker._query_dispatch_info", ("self", "mesh_name")),
    UpstreamName("verl.single_controller.base.decorator", "register", ("dispatch_mode",)),
    UpstreamName("verl.single_controller.base.decorator", "Dispatch"),
    UpstreamName("verl.single_controller.base.decorator", "make_nd_compute_dataproto_dispatch_fn", ("mesh_name",)),
    UpstreamName("verl.trainer.ppo.utils", "need_reference_policy", ("config",)),
    UpstreamName("verl.workers.engine_workers", "ActorRolloutRefWorker", ("config", "role")),
    UpstreamName("verl.workers.engine_workers", "ActorRolloutRefWorker.update_actor", ("self", "data")),
    UpstreamName("verl.workers.engine_workers", "ActorRolloutRefWorker.compute_log_prob", ("self", "data")),
    UpstreamName(
        "verl.workers.engine_workers", "ActorRolloutRefWorker.save_checkpoint", ("self", "local_path", "global_step")
    ),
    UpstreamName("verl.workers.engine_workers", "TrainingWorker.set_loss_fn", ("self", "loss_fn")),
    UpstreamName("verl.workers.engine.base", "BaseEngine.to", ("self", "device", "model", "optimizer", "grad")),
    UpstreamName("verl.workers.engine.base", "BaseEngine.is_param_offload_enabled"),
    UpstreamName("verl.workers.engine.base", "BaseEngine.is_optimizer_offload_enabled"),
    UpstreamName("verl.utils.device", "get_device_name"),
    UpstreamName("verl.utils.device", "get_torch_device"),
    UpstreamName("verl.workers.engine_workers", "TrainingWorker.train_mini_batch", ("self", "data")),
    UpstreamName("verl.workers.engine.fsdp.transformer_impl", "FSDPEngine._build_lr_scheduler", ("self", "optimizer")),
    UpstreamName("verl.workers.engine.fsdp.transformer_impl", "FSDPEngine._build_fsdp_module", ("self", "module")),
    UpstreamName("verl.workers.engine.fsdp.transformer_impl", "FSDPEngineWithLMHead"),
    UpstreamName("verl.workers.engine.fsdp.transformer_impl", "load_fsdp_model_to_gpu", ("model",)),
    UpstreamName("verl.workers.engine.base", "EngineRegistry.register", ("model_type", "backend", "device")),
    UpstreamName(
        "verl.utils.checkpoint.checkpoint_manager", "BaseCheckpointManager.register_checkpoint", ("self", "new_path")
    ),
    UpstreamName("verl.utils.tensordict_utils", "assign_non_tensor", ("tensor_dict",)),
    UpstreamName("verl.utils.dataset.dataset_utils", "DatasetPadMode"),
    UpstreamName("verl.utils.config", "omega_conf_to_dataclass", ("config",)),
    UpstreamName("verl.workers.rollout.utils", "get_max_position_embeddings", ("hf_config",)),
    UpstreamName("verl.utils.torch_functional", "logprobs_from_logits_v2", ("logits", "labels")),
    UpstreamName("verl.utils.torch_functional", "logprobs_from_logits_naive", ("logits", "labels")),
    UpstreamName("verl.utils.distributed", "initialize_global_process_group_ray", ("timeout_second", "backend")),
    UpstreamName(
        "verl.utils.tokenizer.continuous_token_wiring",
        "create_continuous_token_builder",
        ("tokenizer", "hf_model_type", "chat_template_kwargs"),
    ),
    UpstreamName("verl.utils.tokenizer.tokenizer", "normalize_token_ids", ("tokenized_output",)),
    UpstreamName("verl.utils.model", "get_generation_config", ("model",)),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "AgentLoopBase.run", ("self", "sampling_params")),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "AgentLoopOutput"),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "AgentLoopMetrics"),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "register", ("agent_name",)),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "_agent_loop_registry"),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "AgentLoopWorker", ("config", "llm_client")),
    UpstreamName(
        "verl.experimental.agent_loop.agent_loop",
        "AgentLoopWorker._run_agent_loop",
        ("self", "sampling_params", "trajectory", "agent_name", "trace"),
    ),
    UpstreamName(
        "verl.experimental.agent_loop.agent_loop",
        "AgentLoopWorker._agent_loop_postprocess",
        ("self", "output", "validate"),
    ),
    UpstreamName(
        "verl.trainer.ppo.utils", "create_rl_dataset", ("data_paths", "data_config", "tokenizer", "processor")
    ),
    UpstreamName("verl.workers.rollout.llm_server", "LLMServerClient", ("config",)),
    UpstreamName("verl.workers.rollout.replica", "TokenOutput"),
    UpstreamName("verl.checkpoint_engine.base", "CheckpointEngineManager.sleep_replicas", ("self",)),
    UpstreamName("verl.checkpoint_engine.base", "CheckpointEngineManager.update_weights", ("self", "global_steps")),
    UpstreamName("verl.plugin.platform", "PlatformBase"),
    UpstreamName("verl.plugin.platform", "PlatformRegistry.register", ("platform",)),
    UpstreamName("verl.plugin.platform.platform_manager", "_current_platform"),
    UpstreamName("verl.plugin.platform.platform_manager", "set_platform", ("platform",)),
)
ROLLOUT_NAMES: tuple[UpstreamName, ...] = (
    UpstreamName("verl.workers.rollout.base", "_ROLLOUT_REGISTRY"),
    UpstreamName("verl.workers.rollout.replica", "RolloutReplicaRegistry.register", ("name", "loader")),
    UpstreamName("verl.workers.rollout.vllm_rollout.vllm_async_server", "vLLMReplica"),
    UpstreamName(
        "verl.workers.rollout.vllm_rollout.vllm_async_server", "vLLMHttpServer._get_worker_extension_cls", ("self",)
    ),
    UpstreamName(
        "verl.workers.rollout.vllm_rollout.vllm_rollout",
        "ServerAdapter._execute_method",
        ("self", "method", "non_block"),
    ),
    UpstreamName(
        "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer", "BucketedWeightSender._init_socket", ("self",)
    ),
    UpstreamName(
        "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer",
        "BucketedWeightReceiver.receive_weights",
        ("self", "on_bucket_received"),
    ),
    UpstreamName(
        "verl.workers.rollout.vllm_rollout.utils",
        "vLLMColocateWorkerExtension.update_weights_from_ipc",
        ("self", "peft_config", "base_sync_done", "use_shm"),
    ),
    UpstreamName("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.reload_weights", ("self", "weights_iterator")),
)
"""Used on the CPU platform alone."""
VLLM_NAMES: tuple[UpstreamName, ...] = (
    UpstreamName(
        "vllm.entrypoints.openai.completion.protocol",
        "CompletionRequest",
        (
            *("prompt", "n", "max_tokens", "return_token_ids", "logprobs"),
            *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        ),
    ),
)
"""Used with vLLM as rollout server."""
MEGATRON_NAMES: tuple[UpstreamName, ...] = (
    UpstreamName("verl.workers.engine.megatron.transformer_impl", "MegatronEngine._build_lr_scheduler", ("self",)),
    UpstreamName("verl.workers.engine.megatron.transformer_impl", "MegatronEngine.optimizer_step", ("self",)),
    UpstreamName("verl.workers.engine.megatron.utils", "set_random_seed", ("seed",)),
    UpstreamName("verl.utils.megatron_utils", "unwrap_model", ("model",)),
    UpstreamName("verl.utils.megatron_utils", "get_hf_model_checkpoint_path", ("checkpoint_path",)),
    UpstreamName(
        "verl.utils.checkpoint.megatron_checkpoint_manager",
        "MegatronCheckpointManager",
        ("optimizer_scheduler", "use_checkpoint_opt_param_scheduler"),
    ),
    UpstreamName("megatron.core.optimizer.optimizer", "MegatronOptimizer.reload_model_params", ("self",)),
    UpstreamName(
        "megatron.core.optimizer_param_scheduler",
        "OptimizerParamScheduler",
        ("optimizer", "max_lr", "override_opt_param_scheduler"),
    ),
    UpstreamName("megatron.core.parallel_state", "get_tensor_model_parallel_group"),
)
"""Used with verl's Megatron engine alone."""
