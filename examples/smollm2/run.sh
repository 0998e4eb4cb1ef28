#!/usr/bin/env bash
# The whole road with SmolLM2-135M-Instruct on the household, small: examples/smollm2/run.sh [override ...]
# Environment: MODEL (a folder; without it, the model is fetched into build/smollm2), OUT and those of recipes/household/run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ -z ${MODEL:-} ]]; then
  MODEL=$PWD/build/smollm2
  [[ -e $MODEL ]] || python examples/smollm2/fetch.py "$MODEL"
fi
export MODEL OUT=${OUT:-runs/smollm2} METHOD=iwm_sr DEMOS=${DEMOS:-8} EPISODES=${EPISODES:-4}
export PROMPT=${PROMPT:-1024} RESPONSE=${RESPONSE:-160} LR=${LR:-5e-5} GRPO_LR=${GRPO_LR:-1e-6}
EARLY=early_experience
SETTINGS=(
  # It keeps to the form of a chat better than to one long message, at a low temperature.
  $EARLY.prompt.format=react $EARLY.history_length=2 $EARLY.max_turns=6
  actor_rollout_ref.rollout.temperature=0.5 actor_rollout_ref.rollout.max_model_len=2048
)
for SET in world_model reflection; do
  SETTINGS+=(
    $EARLY.collect.$SET.alternatives=policy $EARLY.collect.$SET.k=2 $EARLY.collect.$SET.draws=6
    $EARLY.collect.$SET.temperatures='[0.5]' $EARLY.collect.$SET.unlisted=replace
  )
done
SETTINGS+=(
  # It writes the summaries that the world model predicts, and the rationales. Few of these pass the gates, and many texts
  # are cut off, so little is asked for.
  $EARLY.world_model.target=summary
  +$EARLY.writers.policy.kind=policy +$EARLY.writers.policy.max_tokens=256 +$EARLY.writers.policy.temperature=0.7
  $EARLY.reflection.min_accepted=0.02 $EARLY.max_dropped=0.5
  $EARLY.stages.reflection.epochs=2
  data.train_batch_size=1 actor_rollout_ref.rollout.n=4 actor_rollout_ref.actor.ppo_mini_batch_size=1
  # Its vocabulary is large: logits of 16,384 tokens, the recipe's own limit, take 3 GB.
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4096 actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=4096
  trainer.total_training_steps=1 trainer.test_freq=1 trainer.save_freq=-1
)
recipes/household/run.sh "${SETTINGS[@]}" "$@"
