"""Mid-training and the reference policy on verl's real actor worker: programs for `actors.run`."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from support.actors import PAIRS, local_share, worker
from support.offloading import Offloading
from support.training_states import training_state

Rows = list[tuple[list[int], list[int], str]]
LORA = ("actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=8")


class Group:
    """One worker in this process, called as a worker group is; it may die after having saved a checkpoint."""

    def __init__(self, member: Any, die_after_save: tuple[str, int] | None = None) -> None:
        self.member, self._die_after_save = member, die_after_save
        self.updates = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: [getattr(self.member, name)(*arguments)]

    def update_supervised(self, batch: Any) -> Any:
        self.updates += 1
        return self.member.update_supervised(batch)

    def save_stage(self, path: str, step: int) -> None:
        self.member.save_stage(path, step)
        if self._die_after_save == (Path(path).parent.parent.name, step):
            os.kill(os.getpid(), signal.SIGKILL)


class Silent:
    """verl's tracking, without a backend; it may die at a step."""

    def __init__(self, die_at: tuple[str, int] | None = None) -> None:
        self.logger: dict[str, Any] = {}
        self._die_at = die_at

    def log(self, data: dict[str, Any], step: int) -> None:
        if self._die_at is not None and f"early_experience/{self._die_at[0]}/loss" in data and step == self._die_at[1]:
            os.kill(os.getpid(), signal.SIGKILL)


def _examples(rows: Rows, objective: str) -> Any:
    from verl_ee.objectives.examples import Example
    from verl_ee.objectives.files.example_files import ExampleSet

    return ExampleSet.of(
        [Example(tuple(prompt), tuple(target), name) for prompt, target, name in rows if name == objective]
    )


def mid_train(
    rows: Rows,
    into: str,
    save_freq: int = 0,
    die_at: tuple[str, int] | None = None,
    die_after_save: tuple[str, int] | None = None,
    overrides: tuple[str, ...] = (),
    offloads: bool = False,
) -> Any:
    """World model, then imitation, in a folder that may hold a part of it: the training state, and updates done.

    With `offloads`, weights and moments are away between the steps; every move of them is returned too.
    """
    from verl_ee.config import StageConfig
    from verl_ee.run.folder import RunFolder
    from verl_ee.trainer.mid_training import MidTraining
    from verl_ee.trainer.stage_log import StageLog

    group = Group(worker(overrides=overrides), die_after_save)
    offloading = Offloading(group.member.actor.engine) if offloads else None
    folder = RunFolder(Path(into))
    trained = sum(item.step for item in folder.trained().values())
    log = StageLog(Silent(die_at), folder.metrics_path, trained)
    training = MidTraining(group, folder, log, save_freq, PAIRS, 0)
    before = None
    for name in ("world_model", "imitation"):
        if name not in folder.finished():
            stage = StageConfig(objectives=(name,), epochs=2, lr=2e-3, batch_size=2, warmup_ratio=0.2)
            training.run(name, stage, _examples(rows, name), 6, before, False)
            folder.finish(name)
        before = name
    moves = [] if offloading is None else list(offloading.moves)
    with group.member._offload.weights():
        return {"state": training_state(group.member), "updates": group.updates, "moves": moves}


def anchored(
    rows: Rows, into: str, resume: bool = False, overrides: tuple[str, ...] = (), offloads: bool = False
) -> Any:
    """Gap between policy and reference: at hand-over against base and anchor, after two GRPO saves, after a resume."""
    from verl_ee.config import StageConfig
    from verl_ee.trainer.actor.batch import to_batch

    # A new adapter is drawn.
    torch.manual_seed(0)
    member = worker(overrides=overrides)
    adapter = any("lora_rank" in item for item in overrides)
    reference = member if adapter else _reference(overrides)
    if offloads:
        Offloading(member.actor.engine)

    def batch() -> Any:
        # verl takes settings out of a batch that it has trained on.
        return to_batch(_examples(rows, "imitation"), PAIRS, 0)

    def log_probs(of_reference: bool) -> Any:
        return _log_probs(member, reference, batch(), of_reference, adapter)

    paths = [f"{into}/global_step_{step}/actor" for step in range(3)]
    if resume:
        reference.anchor_adapter(paths[0]) if adapter else reference.anchor_reference(paths[0])
        member.load_checkpoint(paths[2])
        with member._offload.weights():
            state = training_state(member)
        return {"reference": log_probs(True), "policy": log_probs(False), "state": state}
    stage = StageConfig(objectives=("imitation",), epochs=1, lr=5e-3, batch_size=5, schedule="constant")
    member.begin_stage(stage, 3)
    for _ in range(3):
        member.update_supervised(batch())
    base = log_probs(True)
    member.hand_over()
    member.save_checkpoint(paths[0], None, 0, 1)
    member.exempt_from_rotation(paths[0])
    reference.anchor_adapter(paths[0]) if adapter else reference.anchor_reference(paths[0])
    result = {"base": base, "policy": log_probs(False), "reference": log_probs(True)}
    member.begin_stage(stage, 2)
    for step in (1, 2):
        member.update_supervised(batch())
        member.save_checkpoint(paths[step], None, step, 1)
    result |= {"later": log_probs(True), "moved": log_probs(False), "fingerprint": member.policy_fingerprint()}
    with member._offload.weights():
        result["state"] = training_state(member)
    result["names"] = sorted(member.actor.engine.module.state_dict())
    result["kept"] = [Path(path).exists() for path in paths]
    return result


def backbone(rows: Rows, into: str, overrides: tuple[str, ...]) -> Any:
    """A stage of six steps, and its second half again in a new worker; then the hand-over and its reference."""
    from verl_ee.config import StageConfig
    from verl_ee.trainer.actor.batch import to_batch

    stage = StageConfig(objectives=("imitation",), epochs=1, lr=5e-3, batch_size=5, warmup_ratio=0.5)
    examples = _examples(rows, "imitation")
    limits = replace(PAIRS, workers=int(os.environ["WORLD_SIZE"]))

    def train(member: Any, steps: int) -> None:
        for _ in range(steps):
            member.update_supervised(local_share(to_batch(examples, limits, 0)))

    first = worker(overrides=overrides)
    first.begin_stage(stage, 6)
    train(first, 3)
    first.save_stage(f"{into}/half/actor", 3)
    train(first, 3)
    second = worker(overrides=overrides)
    second.begin_stage(stage, 6)
    second.load_stage(f"{into}/half/actor", ["model", "optimizer", "extra"])
    train(second, 3)
    result = {"undisturbed": training_state(first), "resumed": training_state(second)}
    second.hand_over()
    second.save_checkpoint(f"{into}/global_step_0/actor", None, 0, None)
    reference = _reference(overrides)
    batches = [local_share(to_batch(examples, limits, 0)) for _ in range(3)]
    base = _log_probs(second, reference, batches[0], True, False)
    fingerprints = second.policy_fingerprint(), reference.anchor_reference(f"{into}/global_step_0/actor")
    policy = _log_probs(second, reference, batches[1], False, False)
    anchor = _log_probs(second, reference, batches[2], True, False)
    return result | {"base": base, "policy": policy, "reference": anchor, "fingerprints": fingerprints}


def _reference(overrides: tuple[str, ...]) -> Any:
    """Return a worker that has a reference alone, as float32 as the actor."""
    fp32 = "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
    ref = "actor_rollout_ref.ref"
    strategy = next((item.split("=")[1] for item in overrides if "actor.strategy=" in item), "fsdp2")
    own = (
        f"{ref}.strategy={strategy}",
        f"{ref}.fsdp_config.model_dtype=fp32",
        f"+{ref}.fsdp_config.mixed_precision={fp32}",
        f"{ref}.log_prob_micro_batch_size_per_gpu=2",
    )
    return worker(overrides=(*own, *overrides), role="ref")


def _log_probs(member: Any, reference: Any, data: Any, of_reference: bool, adapter: bool) -> Any:
    from verl.utils import tensordict_utils as tu

    tu.assign_non_tensor(data, calculate_entropy=False, compute_loss=False, distillation_use_topk=False)
    if of_reference and adapter:
        tu.assign_non_tensor(data, no_lora_adapter=True)
    output = reference.compute_ref_log_prob(data) if of_reference and not adapter else member.compute_log_prob(data)
    return [row.tolist() for row in output["log_probs"].unbind()]


if __name__ == "__main__":
    name, where = sys.argv[1], Path(sys.argv[2])
    values = pickle.loads((where / "arguments.pkl").read_bytes())
    result = globals()[name](**values)
    (where / f"result{os.environ['RANK']}.pkl").write_bytes(pickle.dumps(result))
