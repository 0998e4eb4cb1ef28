"""verl's real actor worker on its Megatron engine over gloo, in processes that `actors.run` starts."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from support import actors

Row = tuple[list[int], list[int], str]


def run(program: str, folder: Path, tp: int, pp: int, **arguments: Any) -> list[Any]:
    """Run a function of this module on tp * pp workers and return what each returned."""
    return actors.run(program, tp * pp, folder, script=__file__, tp=tp, pp=pp, **arguments)


def overrides(tp: int, pp: int, packed: bool, dtype: str = "float32") -> list[str]:
    """Return the command line of a job on this engine."""
    return [
        "model_engine=megatron",
        f"actor_rollout_ref.model.path={actors.MODEL}",
        f"actor_rollout_ref.model.use_remove_padding={packed}",
        "actor_rollout_ref.actor.megatron.vanilla_mbridge=True",
        f"actor_rollout_ref.actor.megatron.dtype={dtype}",
        f"actor_rollout_ref.actor.megatron.tensor_model_parallel_size={tp}",
        f"actor_rollout_ref.actor.megatron.pipeline_model_parallel_size={pp}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.actor.optim.lr=1e-4",
        "actor_rollout_ref.actor.optim.total_training_steps=10",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    ]


def worker(tp: int, pp: int, packed: bool, dtype: str = "float32") -> Any:
    """Return an initialised actor worker on the tiny base model."""
    import hydra

    from verl_ee.trainer.actor.worker import EarlyExperienceWorker

    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides(tp, pp, packed, dtype))
    actor = EarlyExperienceWorker(config.actor_rollout_ref, role="actor")
    actor.init_model()
    return actor


def step(actor: Any, rows: list[Row], pads: bool | None = None) -> dict[str, Any] | None:
    """Take a supervised step on one mini-batch: loss, gradient norm, means per objective; None without outputs.

    Whether the engine pads is asked of the actor, unless it is told.
    """
    from verl.utils import tensordict_utils as tu

    from verl_ee.objectives.examples import Example
    from verl_ee.objectives.loss import mean_metrics
    from verl_ee.trainer.actor.batch import sums_of, to_batch

    examples = [Example(tuple(prompt), tuple(target), name) for prompt, target, name in rows]
    limits = replace(actors.PAIRS, pads=not actor.config.model.use_remove_padding if pads is None else pads)
    output = actor.update_supervised(to_batch(examples, limits, 0))
    if output is None:
        return None
    metrics = tu.get(output, "metrics")
    return {
        "loss": _first(metrics["loss"]),
        "grad_norm": _first(metrics["grad_norm"]),
        "lr": _first(metrics["lr"]),
        "summary": mean_metrics(sums_of(metrics)),
    }


def _first(value: Any) -> float:
    return _first(value[0]) if isinstance(value, list) else float(value)


def weights(actor: Any) -> dict[str, Any]:
    """Return the weights as the rollout servers would get them."""
    return {name: value.clone() for name, value in actor.actor.engine.get_per_tensor_param()[0]}


def count_emptied_caches() -> list[int]:
    """Return a list that grows whenever verl's Megatron engine empties the cache of the device."""
    from verl.workers.engine.megatron import transformer_impl

    device, emptied = transformer_impl.get_torch_device(), []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(device, name)

        def empty_cache(self) -> None:
            emptied.append(len(emptied))
            device.empty_cache()

    transformer_impl.get_torch_device = Counting
    return emptied


def stage(
    batches: list[list[Row]], stage: Any, packed: bool, tp: int, pp: int, into: str, dtype: str = "float32"
) -> Any:
    """Train a stage and save it in its middle; the same and another worker go on with it; then hand over."""
    # It imports verl, and Megatron's hurdles must be named before that.
    import torch
    from support.training_states import training_state

    from verl_ee.objectives.loss import SupervisedLoss
    from verl_ee.trainer.actor.engines import vocabulary_group_of

    half, total = len(batches) // 2, len(batches)
    saved, handed = f"{into}/stage", f"{into}/global_step_0/actor"
    actor = worker(tp, pp, packed, dtype)
    emptied = count_emptied_caches()
    actor.begin_stage(stage, total)
    first = [step(actor, rows) for rows in batches[:half]]
    emptied_in_stage = len(emptied)
    middle = weights(actor)
    actor.save_stage(saved, half)
    second = [step(actor, rows) for rows in batches[half:]]
    end, before = weights(actor), training_state(actor)

    other = worker(tp, pp, packed, dtype)
    fresh = training_state(other)
    other.begin_stage(stage, total)
    other.load_stage(saved, ("model", "optimizer", "extra"))
    loaded = training_state(other)
    resumed = [step(other, rows) for rows in batches[half:]]
    equal = all(torch.equal(value, end[name]) for name, value in weights(other).items())

    actor.hand_over()
    after = training_state(actor)
    actor.save_checkpoint(handed, None, 0, 1)
    actor.exempt_from_rotation(handed)
    third = worker(tp, pp, packed, dtype)
    third.load_checkpoint(handed)
    result = {
        "steps": [*first, *second],
        "resumed": resumed,
        "resumed_weights_equal": equal,
        "middle": middle,
        "end": end,
        "states": {"fresh": fresh, "loaded": loaded, "before": before, "after": after, "grpo": training_state(third)},
        "bytes": actor.checkpoint_bytes(),
        "loss_restored": actor.actor.loss_fn is actor.loss_fn,
        "rotated": actor.actor.engine.checkpoint_mananager.previous_saved_paths,
    }
    # A step as a stage takes it, when the stage is over.
    before_last = len(emptied)
    actor.actor.set_loss_fn(SupervisedLoss(vocabulary_group_of(actor.actor.engine)))
    step(actor, batches[0])
    return result | {"emptied": (emptied_in_stage, len(emptied) - before_last)}


def weights_alone(batches: list[list[Row]], stage: Any, tp: int, pp: int, into: str) -> Any:
    """Load a stage's weights in bfloat16 into a fresh worker, which takes a step of next to nothing."""
    actor = worker(tp, pp, True, "bfloat16")
    actor.begin_stage(stage, len(batches))
    for rows in batches:
        step(actor, rows)
    trained = weights(actor)
    actor.save_stage(into, len(batches))
    other = worker(tp, pp, True, "bfloat16")
    first = weights(other)
    other.load_stage(into, ("model",))
    other.begin_stage(stage.model_copy(update={"lr": 1e-12}), 1)
    step(other, batches[0])
    return {"first": first, "trained": trained, "after": weights(other)}


def group(batches: list[list[Row]], stage: Any, tp: int, pp: int) -> Any:
    """Take the first steps of a stage on a stock worker group of Ray's."""
    import hydra
    import ray
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup

    from verl_ee.trainer.actor.worker import EarlyExperienceWorker

    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides(tp, pp, True))
    passed = ("VERL_USE_EXTERNAL_MODULES", "VERL_USE_EXTERNAL_PLUGINS", "PYTHONPATH", "OMP_NUM_THREADS")
    ray.init(
        address="local",
        num_cpus=20,
        num_gpus=tp * pp,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {name: os.environ[name] for name in passed}},
    )
    try:
        workers = RayWorkerGroup(
            resource_pool=RayResourcePool(process_on_nodes=[tp * pp]),
            ray_cls_with_init=RayClassWithInitArgs(
                ray.remote(EarlyExperienceWorker), config=config.actor_rollout_ref, role="actor"
            ),
        )
        workers.init_model()
        workers.begin_stage(stage, len(batches))
        return [step(workers, rows, pads=False) for rows in batches[:2]]
    finally:
        ray.shutdown()


if __name__ == "__main__":
    os.environ["VERL_USE_EXTERNAL_MODULES"] = "support.megatron_cpu"
    program, where = sys.argv[1], Path(sys.argv[2])
    result = globals()[program](**pickle.loads((where / "arguments.pkl").read_bytes()))
    (where / f"result{os.environ['RANK']}.pkl").write_bytes(pickle.dumps(result))
