"""verl's real actor worker in processes of its own, without Ray: FSDP2 over gloo, one process per worker."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from verl_ee.trainer.actor.micro_batches import BatchLimits

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "tiny_base" / "model"
PAIRS = BatchLimits(1, 2, None, True)
"""One worker that pads, in micro-batches of two rows."""


def run(
    program: str, workers: int, folder: Path, plugins: str = "verl_ee", script: str = __file__, **arguments: Any
) -> list[Any]:
    """Run a function of a script, this one or one that ends like it, on `workers` actor workers.

    Returns:
        The result of each worker.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arguments.pkl").write_bytes(pickle.dumps(arguments))
    processes = []
    for rank in range(workers):
        env = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": str(workers),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "VERL_USE_EXTERNAL_PLUGINS": plugins,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, script, program, str(folder)]
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return [pickle.loads((folder / f"result{rank}.pkl").read_bytes()) for rank in range(workers)]


def configuration(*overrides: str) -> Any:
    """Return verl's `actor_rollout_ref` for the tiny base model, in float32."""
    import hydra

    fp32 = "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose(
            "ppo_trainer",
            [
                f"actor_rollout_ref.model.path={MODEL}",
                "actor_rollout_ref.model.use_remove_padding=False",
                "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
                "actor_rollout_ref.actor.strategy=fsdp2",
                "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32",
                f"+actor_rollout_ref.actor.fsdp_config.mixed_precision={fp32}",
                "actor_rollout_ref.actor.use_torch_compile=False",
                "actor_rollout_ref.actor.ppo_mini_batch_size=4",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
                "actor_rollout_ref.rollout.n=2",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.actor.optim.lr=1e-3",
                "actor_rollout_ref.actor.optim.total_training_steps=10",
                *overrides,
            ],
        )
    return config.actor_rollout_ref


def worker(stock: bool = False, overrides: tuple[str, ...] = (), role: str = "actor") -> Any:
    """Return an initialised worker on the tiny base model."""
    from verl.workers.engine_workers import ActorRolloutRefWorker

    config = configuration(*overrides)
    if stock:
        cls = ActorRolloutRefWorker
    else:
        from verl_ee.trainer.actor.worker import EarlyExperienceWorker as cls
    actor = cls(config, role=role)
    actor.init_model()
    return actor


def local_share(batch: Any) -> Any:
    """Return this worker's share of a batch, as verl's dispatch would."""
    from verl.utils import tensordict_utils as tu

    return tu.chunk_tensordict(batch, int(os.environ["WORLD_SIZE"]))[int(os.environ["RANK"])]


def _gradients(actor: Any) -> dict[str, Any]:
    """Return a dict that fills with the full gradients of every mini-batch; no step is taken with them."""
    import torch

    gradients: dict[str, Any] = {}
    engine = actor.actor.engine

    def keep_gradients() -> Any:
        for name, parameter in engine.module.named_parameters():
            gradient = parameter.grad
            gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            gradients[name] = gradient.detach().clone()
        return torch.zeros(())

    engine.optimizer_step = keep_gradients
    return gradients


def supervised_gradients(
    cases: dict[Any, tuple[list[tuple[list[int], list[int], str]], int | None]],
    remove_padding: bool,
    overrides: tuple[str, ...] = (),
) -> Any:
    """Send each case as one mini-batch through `update_supervised`, from the same weights: loss metrics and gradients.

    A case is its rows and the rows of a micro-batch, or None for micro-batches of 400 tokens.
    """
    from verl.utils import tensordict_utils as tu

    from verl_ee.config import StageConfig
    from verl_ee.objectives.examples import Example
    from verl_ee.objectives.loss import mean_metrics
    from verl_ee.trainer.actor.batch import sums_of, to_batch

    actor = worker(overrides=(f"actor_rollout_ref.model.use_remove_padding={remove_padding}", *overrides))
    actor.begin_stage(StageConfig(objectives=("imitation",), epochs=1, lr=1e-3, batch_size=1), len(cases))
    gradients = _gradients(actor)
    results = {}
    for case, (rows, micro) in cases.items():
        examples = [Example(tuple(prompt), tuple(target), name) for prompt, target, name in rows]
        workers, tokens = int(os.environ["WORLD_SIZE"]), 400 if micro is None else None
        batch = local_share(to_batch(examples, BatchLimits(workers, micro, tokens, not remove_padding), 0))
        if micro is None and remove_padding:
            tu.assign_non_tensor(batch, use_dynamic_bsz=True, max_token_len_per_gpu=400)
        gradients.clear()
        metrics = tu.get(actor.update_supervised(batch), "metrics")
        results[case] = {
            "gradients": dict(gradients),
            "loss": metrics["loss"][0],
            "summary": mean_metrics(sums_of(metrics)),
        }
    return results


def supervised_stage(batches: list[list[tuple[list[int], list[int], str]]], stage: Any) -> Any:
    """Train a whole stage, batch by batch: the loss of every step and the learning rate behind it."""
    from verl.utils import tensordict_utils as tu

    from verl_ee.objectives.examples import Example
    from verl_ee.trainer.actor.batch import to_batch

    actor = worker()
    actor.begin_stage(stage, len(batches))
    steps = []
    for rows in batches:
        examples = [Example(tuple(prompt), tuple(target), name) for prompt, target, name in rows]
        metrics = tu.get(actor.update_supervised(to_batch(examples, PAIRS, 0)), "metrics")
        steps.append({"loss": metrics["loss"][0], "lr": metrics["lr"][0]})
    return steps


def ppo_steps(stock: bool) -> Any:
    """Take five PPO updates on a fixed batch: a hash of the weights."""
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu

    actor = worker(stock)
    generator = torch.Generator().manual_seed(0)

    def nested(lengths: list[int], high: int) -> Any:
        rows = [torch.randint(0, high, (length,), generator=generator) for length in lengths]
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    prompts, responses = nested([5, 7, 6, 9], 600), nested([4, 3, 5, 2], 600)
    pairs = list(zip(prompts.unbind(), responses.unbind(), strict=True))
    whole = [torch.cat(pair) for pair in pairs]
    floats = [torch.randn(len(response), generator=generator) for _, response in pairs]

    def jagged(rows: list[Any]) -> Any:
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    for _ in range(5):
        batch = TensorDict(
            {
                "prompts": prompts,
                "responses": responses,
                "input_ids": jagged(whole),
                "position_ids": jagged([torch.arange(len(row)) for row in whole]),
                "loss_mask": jagged([torch.ones(len(r), dtype=torch.long) for _, r in pairs]),
                "response_mask": jagged([torch.ones(len(r), dtype=torch.long) for _, r in pairs]),
                "old_log_probs": jagged([-row.abs() - 5 for row in floats]),
                "advantages": jagged(floats),
            },
            batch_size=[4],
        )
        tu.assign_non_tensor(
            batch, temperature=1.0, global_batch_size=4, mini_batch_size=4, epochs=1, seed=0, calculate_entropy=False
        )
        actor.update_actor(batch)
    return fingerprint(actor)


def fingerprint(actor: Any) -> str:
    """Return a hash of the weights."""
    sha = hashlib.sha256()
    for name, value in sorted(actor.actor.engine.module.state_dict().items()):
        local = value.to_local() if hasattr(value, "to_local") else value
        sha.update(name.encode() + local.contiguous().numpy().tobytes())
    return sha.hexdigest()


def hand_over(rows: list[tuple[list[int], list[int], str]], into: str) -> Any:
    """Train a stage, hand over and save: training states before and after, rates, and the checkpoints that are kept."""
    from support.training_states import training_state
    from verl.utils import tensordict_utils as tu

    from verl_ee.config import StageConfig
    from verl_ee.objectives.examples import Example
    from verl_ee.trainer.actor.batch import sums_of, to_batch

    actor = worker()
    stage = StageConfig(objectives=("imitation",), epochs=2, lr=2e-3, batch_size=len(rows), warmup_ratio=0.5)
    actor.begin_stage(stage, 4)
    examples = [Example(tuple(prompt), tuple(target), name) for prompt, target, name in rows]
    rates, losses = [], []
    for _ in range(4):
        rates.append(actor.actor.engine.optimizer.param_groups[0]["lr"])
        metrics = tu.get(actor.update_supervised(to_batch(examples, PAIRS, 0)), "metrics")
        losses.append(sums_of(metrics)["sums/imitation/nll"])
    before = training_state(actor)
    actor.hand_over(True)
    with_optimizer = training_state(actor)
    actor.hand_over()
    after = training_state(actor)
    saved = [f"{into}/global_step_{step}/actor" for step in range(3)]
    actor.save_checkpoint(saved[0], None, 0, 1)
    actor.exempt_from_rotation(saved[0])
    actor.save_checkpoint(saved[1], None, 1, 1)
    actor.save_checkpoint(saved[2], None, 2, 1)
    return {
        "rates": rates,
        "losses": losses,
        "before": before,
        "with_optimizer": with_optimizer,
        "after": after,
        "kept": [Path(path).exists() for path in saved],
        "loss_restored": actor.actor.loss_fn is actor.loss_fn,
    }


if __name__ == "__main__":
    name, where = sys.argv[1], Path(sys.argv[2])
    values = pickle.loads((where / "arguments.pkl").read_bytes())
    result = globals()[name](**values)
    (where / f"result{os.environ['RANK']}.pkl").write_bytes(pickle.dumps(result))
