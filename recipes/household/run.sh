#!/usr/bin/env bash
# Mid-training and GRPO on the household, in one verl job: recipes/household/run.sh [verl override ...]
# Environment: METHOD (iwm, imitation, sr, iwm_sr), OUT (folder of the run), MODEL, TINY (1: a model that comes from the tiny
# base, for which a rule writes rationales; the default without MODEL), SEED, DEMOS, EPISODES, CONSOLE (full, quiet), PROMPT
# and RESPONSE (tokens), LR and GRPO_LR (learning rates of the stages and of GRPO), and those of recipes/device.sh;
# the defaults are for the tiny base, and those of `make demo`, which is quiet.
set -euo pipefail
cd "$(dirname "$0")/../.."
source recipes/device.sh
METHOD=${METHOD:-iwm}; OUT=$(realpath -m "${OUT:-runs/household}"); SEED=${SEED:-0}
TINY=${TINY:-$([[ -n ${MODEL:-} ]] && echo 0 || echo 1)}; MODEL=${MODEL:-$PWD/examples/tiny_base/model}
DEMOS=${DEMOS:-300}; EPISODES=${EPISODES:-64}
ENV=verl_ee/Household-v0
# GRPO learns from the goal's conditions that hold in the end; success is what is reported.
REWARD=progress
mkdir -p "$OUT/data"
verl-ee experts record --env $ENV --kwarg reward=$REWARD --split train --first $((SEED * DEMOS)) -n "$DEMOS" --out "$OUT/data/experts.jsonl"
verl-ee envs tasks --env $ENV --split train:2000 -n 1024 --out "$OUT/data/train.parquet"
verl-ee envs tasks --env $ENV --split seen --split unseen -n "$EPISODES" --out "$OUT/data/val.parquet"

EARLY=(
  early_experience.environment.id=$ENV +early_experience.environment.kwargs.reward=$REWARD
  early_experience.experts="$OUT/data/experts.jsonl"
  early_experience.max_turns=16 early_experience.console="${CONSOLE:-full}"
)
if [[ $METHOD == *sr ]]; then LENGTH=96; else LENGTH=32; fi  # tokens: a rationale and an action, or an action
PROMPT=${PROMPT:-448}; RESPONSE=${RESPONSE:-$LENGTH}; LR=${LR:-5e-4}; GRPO_LR=${GRPO_LR:-1e-4}
CONTEXT=512
if [[ $METHOD == *sr && $TINY == 0 ]]; then CONTEXT=2048; fi  # the policy writes texts of up to 1024 tokens
CONTEXT=$((PROMPT + RESPONSE > CONTEXT ? PROMPT + RESPONSE : CONTEXT))
stage() {  # a stage of the method, and its epochs
  EARLY+=(
    early_experience.stages."$1".lr="$LR" early_experience.stages."$1".batch_size=16
    early_experience.stages."$1".epochs="$2" early_experience.stages."$1".seed="$SEED"
  )
}
if [[ $METHOD == iwm* ]]; then
  EARLY+=(early_experience.collect.world_model.k=1 early_experience.collect.world_model.seed="$SEED")
  stage world_model 1
fi
if [[ $METHOD == *sr ]]; then
  # The tiny base cannot write; a rule does.
  if [[ $TINY == 1 ]]; then EARLY+=(early_experience.reflection.writer=template); fi
  EARLY+=(early_experience.collect.reflection.seed="$SEED")
  stage reflection 3
else
  stage imitation 3
fi
GRPO=(
  algorithm.adv_estimator=grpo actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.seed="$SEED"
  actor_rollout_ref.rollout.temperature=0.7
  actor_rollout_ref.actor.optim.lr="$GRPO_LR" actor_rollout_ref.actor.ppo_mini_batch_size=16
  actor_rollout_ref.actor.shuffle=True
  actor_rollout_ref.actor.use_dynamic_bsz=True actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
  actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=32768
  actor_rollout_ref.rollout.max_model_len=$CONTEXT actor_rollout_ref.rollout.max_num_seqs=128
  algorithm.rollout_correction.bypass_mode=True actor_rollout_ref.rollout.calculate_log_probs=True
)
python -m verl.trainer.main_ppo +early_experience="$METHOD" "${EARLY[@]}" "${GRPO[@]}" \
  data.train_files="$OUT/data/train.parquet" data.val_files="$OUT/data/val.parquet" data.seed="$SEED" \
  data.train_batch_size=8 data.max_prompt_length="$PROMPT" data.max_response_length="$RESPONSE" data.truncation=error \
  actor_rollout_ref.model.path="$MODEL" \
  trainer.logger='[console]' trainer.project_name=verl_ee trainer.experiment_name="household-$METHOD" \
  trainer.total_training_steps=6 trainer.test_freq=6 trainer.save_freq=6 \
  trainer.default_local_dir="$OUT" \
  "${DEVICE[@]}" "$@"
