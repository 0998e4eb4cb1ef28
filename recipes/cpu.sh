# Settings that a verl job needs to run on a CPU; source it, then pass "${CPU[@]}". recipes/gpu.sh is its counterpart.
# Environment: CPU_DTYPE (bfloat16, float32) of actor, reference and servers; unset, the processor decides.
# Without this variable the plugin leaves verl as it is, also where there is no accelerator.
export VERL_PLATFORM=cpu
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}   # GiB of KV cache
export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
# With 1, vLLM's CPU build runs its workers in processes of their own, whatever executor is asked for: what
# tensor_model_parallel_size above 1 needs, and what VLLM_CPU_OMP_THREADS_BIND is for.
export VLLM_ENABLE_V1_MULTIPROCESSING=${VLLM_ENABLE_V1_MULTIPROCESSING:-0}
export RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 TOKENIZERS_PARALLELISM=false
# Ray gives its workers one thread each, and a niceness that starves them beside any other process.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
CPU=(
  # A Ray that was started before the job does not inherit this shell's environment.
  +ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM=cpu
  trainer.device=cpu trainer.n_gpus_per_node=1 trainer.nnodes=1
  ray_kwargs.ray_init.num_cpus=16 +ray_kwargs.ray_init.num_gpus=1 +ray_kwargs.ray_init.include_dashboard=False
  actor_rollout_ref.actor.strategy=fsdp2 actor_rollout_ref.ref.strategy=fsdp2
  actor_rollout_ref.actor.use_torch_compile=False actor_rollout_ref.model.enable_gradient_checkpointing=False
  actor_rollout_ref.model.use_remove_padding=False +actor_rollout_ref.model.override_config.attn_implementation=sdpa
  actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.enforce_eager=True
  +actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend=uni
  +actor_rollout_ref.rollout.engine_kwargs.vllm.block_size=32
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 actor_rollout_ref.rollout.free_cache_engine=False
  +actor_rollout_ref.rollout.enable_sleep_mode=False actor_rollout_ref.rollout.agent.num_workers=1
  reward.num_workers=1 data.dataloader_num_workers=0
  transfer_queue.backend.SimpleStorage.num_data_storage_units=1
)
# verl computes in bfloat16 by default, which is slow on a processor without instructions for it.
if [[ -z ${CPU_DTYPE:-} ]]; then
  if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then CPU_DTYPE=bfloat16; else CPU_DTYPE=float32; fi
fi
case $CPU_DTYPE in
  bfloat16) ;;
  float32)
    FP32="{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
    CPU+=(
      actor_rollout_ref.rollout.dtype=float32
      "+actor_rollout_ref.actor.fsdp_config.mixed_precision=$FP32"
      "+actor_rollout_ref.ref.fsdp_config.mixed_precision=$FP32"
    )
    ;;
  *)
    echo "CPU_DTYPE=$CPU_DTYPE does not exist. It is bfloat16, float32, or unset for what the processor is fast at." >&2
    return 1
    ;;
esac
