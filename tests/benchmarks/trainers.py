"""Three trainers on the same batches, each in fresh processes of its own: ours, verl's SFT and TRL's.

Whatever a trainer is, the moment of a step is the one at which its line comes out of the trainer's process; the clock
is that of the process which measures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from support import actors, sft_trainer
from support.prompts import TOLD_FORM
from transformers import AutoTokenizer

from benchmarks.settings import cpu
from verl_ee.config import StageConfig
from verl_ee.envs import make
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.examples import Example, encode
from verl_ee.objectives.files.row_files import PARQUET
from verl_ee.objectives.rows import imitation_rows, row_to_json, rows_from_json
from verl_ee.objectives.schedule import batches
from verl_ee.run.folder import RunFolder
from verl_ee.trainer.actor.micro_batches import BatchLimits
from verl_ee.trainer.mid_training import MidTraining
from verl_ee.trainer.rollout.tokens import encoder_for
from verl_ee.trainer.stage_log import StageLog

BATCH, HISTORY = 16, 8
LR = 5e-4
STEP = re.compile(r"^step:\d+ - .*?\bloss:([-+.\de]+)")


class Step(NamedTuple):
    """The end of an optimizer step.

    Attributes:
        time: when, in seconds of `time.perf_counter`.
        loss: of its batch.
    """

    time: float
    loss: float


@dataclass(frozen=True)
class TrainingData:
    """The data of every trainer.

    Attributes:
        folder: `model/`, and a Parquet file for each trainer, in the order in which that trainer then meets the rows.
        tokens: of every step, read and learned, without padding.
    """

    folder: Path
    tokens: tuple[int, ...]


def prepare(folder: Path, steps: int) -> TrainingData:
    """Write the model and the rows of one epoch of imitation on the household."""
    sft_trainer.closed_model(folder / "model")
    count, env = steps * BATCH, make("verl_ee/Household-v0").unwrapped
    trajectories = [env.expert_trajectory(f"train/{index}") for index in range(count // 4)]  # type: ignore[attr-defined]
    rows = list(imitation_rows(trajectories, HISTORY, TOLD_FORM))[:count]
    if len(rows) < count:
        raise RuntimeError(f"{len(trajectories)} trajectories have {len(rows)} states; expected {count}.")
    positions: Any = range(count)
    met: list[Any] = [position for batch in batches(stage(), positions) for position in batch]
    # verl's sampler takes torch's permutation of seed 0: what it takes n-th has to be what ours meets n-th.
    taken = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    position_of = dict(zip(taken, met, strict=True))
    for name, order in {
        "ours": range(count),
        "verl": [position_of[index] for index in range(count)],
        "trl": met,
    }.items():
        table = pa.Table.from_pylist([row_to_json(rows[index]) for index in order], PARQUET)
        pq.write_table(table, folder / f"{name}.parquet")
    lengths = [len(example) for example in _examples(folder)]
    ordered = [lengths[position] for position in met]
    return TrainingData(folder, tuple(sum(ordered[at : at + BATCH]) for at in range(0, count, BATCH)))


def stage() -> StageConfig:
    return StageConfig(objectives=("imitation",), epochs=1, lr=LR, batch_size=BATCH, schedule="constant")


def train(name: str, data: TrainingData) -> list[Step]:
    """Train one epoch and return the steps.

    Raises:
        RuntimeError: if the trainer fails, or takes another number of steps.
    """
    folder = data.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    own = [sys.executable, "-m", __name__, name, str(data.folder)]
    # Each of them starts a Ray of its own.
    environ = cpu().environ | sft_trainer.ENVIRON
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if name == "ours":
        del environ["VERL_USE_EXTERNAL_PLUGINS"]
    steps, output = [], []
    with (folder / "stderr").open("w+") as errors:
        command = _verl(data.folder) if name == "verl" else own
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True)
        for line in process.stdout or ():
            match = STEP.match(line)
            if match:
                steps.append(Step(time.perf_counter(), float(match[1])))
            output.append(line)
        status = process.wait()
        errors.seek(0)
        output.append(errors.read())
    if status or len(steps) != len(data.tokens):
        tail = "".join(output)[-3000:]
        raise RuntimeError(f"{name} ended with status {status} after {len(steps)} of {len(data.tokens)} steps:\n{tail}")
    return steps


def _verl(folder: Path) -> list[str]:
    command = sft_trainer.command(folder / "model", folder / "verl.parquet", folder / "verl", BATCH, BATCH, LR)
    return [*command, "trainer.total_epochs=1", "trainer.logger=[console]"]


def _encoder(folder: Path) -> Encoder:
    return encoder_for(AutoTokenizer.from_pretrained(folder / "model"), "qwen2", {})


def _examples(folder: Path) -> list[Example]:
    items = pq.read_table(folder / "ours.parquet").to_pylist()
    rows = (row for item in items for row in rows_from_json(item, "ours.parquet", None, None, ""))
    return list(encode(rows, _encoder(folder)))


def _ours(folder: Path) -> None:
    """Train with our stage, on an actor worker group of a Ray of its own."""
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
    from verl.utils.tracking import Tracking

    from verl_ee.trainer.actor.worker import EarlyExperienceWorker

    ray.init(address="local", include_dashboard=False)
    config = actors.configuration(
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={BATCH}",
    )
    worker = RayClassWithInitArgs(ray.remote(EarlyExperienceWorker), config=config, role="actor")
    group: Any = RayWorkerGroup(RayResourcePool([1]), worker, device_name="cpu")
    group.init_model()
    began = time.perf_counter()
    examples = _examples(folder)
    print(f"encoded in {time.perf_counter() - began:.3f} s")
    log = StageLog(Tracking("bench", "midtrain", ["console"]), folder / "ours/metrics.jsonl")
    training = MidTraining(group, RunFolder(folder / "ours"), log, 0, BatchLimits(1, BATCH, None, pads=True), 0)
    training.run("imitation", stage(), examples, len(examples) // BATCH, None, False)


def _trl(folder: Path) -> None:
    """Train with TRL, which encodes conversations itself."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Printer(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                print(f"step:{state.global_step} - loss:{logs['loss']}", flush=True)

    conversations = pq.read_table(folder / "trl.parquet").column("messages").to_pylist()
    rows = [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in conversations]
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.01,
        max_grad_norm=1.0,
        max_length=None,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=str(folder / "model"),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Printer()],
    )
    trainer.train()


PROGRAMS: dict[str, Callable[[Path], None]] = {"ours": _ours, "trl": _trl}


def main(arguments: Sequence[str]) -> None:
    """Run the program of a side: its name, and the folder of the data."""
    PROGRAMS[arguments[0]](Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
