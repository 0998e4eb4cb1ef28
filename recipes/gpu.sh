# Settings of a verl job on GPUs of 80 GB, from a model of millions of parameters to one of 1.5 billion on one card; source it,
# then pass "${GPU[@]}". docs/gpu.md says what to change for larger models.
# Environment: GPUS (per node), NODES, TP (GPUs that share one rollout server), OFFLOAD (none; policy: weights, gradients and
# moments stay in the host's memory, and layers come to the card as they are used).
GPUS=${GPUS:-1}; NODES=${NODES:-1}; TP=${TP:-1}; OFFLOAD=${OFFLOAD:-none}
GPU=(
  trainer.device=cuda trainer.n_gpus_per_node="$GPUS" trainer.nnodes="$NODES"
  actor_rollout_ref.actor.strategy=fsdp2 actor_rollout_ref.ref.strategy=fsdp2
  actor_rollout_ref.model.enable_gradient_checkpointing=True
  actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.tensor_model_parallel_size="$TP"
  # The rest is for the actor, which keeps its memory while servers generate.
  actor_rollout_ref.rollout.gpu_memory_utilization=0.5 actor_rollout_ref.rollout.free_cache_engine=True
)
case $OFFLOAD in
  none) ;;
  policy) GPU+=(actor_rollout_ref.actor.fsdp_config.offload_policy=True) ;;
  *)
    echo "OFFLOAD=$OFFLOAD does not exist. It is none or policy." >&2
    return 1
    ;;
esac
# verl's default is flash attention, whose package the extra `vllm` does not bring.
if ! python -c 'from importlib.util import find_spec; raise SystemExit(find_spec("flash_attn") is None)'; then
  # Packed rows would need a mask of the whole pack by itself.
  GPU+=(+actor_rollout_ref.model.override_config.attn_implementation=sdpa actor_rollout_ref.model.use_remove_padding=False)
else
  GPU+=(actor_rollout_ref.model.use_remove_padding=True)
fi
