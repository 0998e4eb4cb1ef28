#!/usr/bin/env bash
# Self-reflection of SmolLM2-135M-Instruct on the household, with the prompt's defaults: examples/smollm2/run.sh [override ...]
# Environment: MODEL, OUT and those of recipes/household/run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
export MODEL=${MODEL:-$PWD/build/smollm2} OUT=${OUT:-runs/smollm2} METHOD=sr DEMOS=${DEMOS:-6} EPISODES=${EPISODES:-4}
export PROMPT=${PROMPT:-768} RESPONSE=${RESPONSE:-64} LR=${LR:-1e-5}
WRITER=early_experience.writers.policy
# So small a model seldom writes an action: it gets several draws for each alternative, at a low temperature. Few of its
# rationales pass the gates, at any temperature, so few are asked for.
recipes/household/run.sh +$WRITER.kind=policy +$WRITER.max_tokens=256 early_experience.reflection.min_accepted=0.02 early_experience.collect.reflection.draws=12 \
  'early_experience.collect.reflection.temperatures=[0.5]' \
  early_experience.stages.reflection.epochs=1 early_experience.max_turns=3 early_experience.evaluate=False \
  actor_rollout_ref.rollout.max_model_len=2048 data.train_batch_size=2 actor_rollout_ref.rollout.n=2 \
  actor_rollout_ref.actor.ppo_mini_batch_size=2 \
  trainer.total_training_steps=1 trainer.val_before_train=False trainer.test_freq=-1 trainer.save_freq=-1 "$@"
