# Settings of the machine that a job runs on; source it, then pass "${DEVICE[@]}".
# Environment: VERL_PLATFORM=cpu (run on the CPU, whatever is there), GPUS (per node; unset: those that torch can use here).
if [[ ${VERL_PLATFORM:-} != cpu ]]; then
  # It fails, and so does the recipe, where there are GPUs that torch cannot use.
  GPUS=${GPUS:-$(verl-ee check --gpus)} || exit 1
  if [[ $GPUS == 0 ]]; then
    echo 'No GPU is here, so the job runs on the CPU. On the head node of a cluster, say GPUS=<per node>.' >&2
  fi
fi
if [[ ${VERL_PLATFORM:-} != cpu && $GPUS -gt 0 ]]; then
  source "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
  DEVICE=("${GPU[@]}")
else
  source "$(dirname "${BASH_SOURCE[0]}")/cpu.sh"
  DEVICE=("${CPU[@]}")
fi
