"""verl's own SFT trainer on a machine without an accelerator: its command, and what its processes need."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from support.actors import MODEL

FP32 = "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
ENVIRON = {
    "VERL_USE_EXTERNAL_PLUGINS": "verl_ee_cpu",
    # Its ray.init takes no arguments; verl asks Ray for a logical GPU and ten CPUs per worker.
    "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 16, "GPU": 1}),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}


def command(model: Path, parquet: Path, folder: Path, batch: int, micro: int, lr: float) -> list[str]:
    """Return the command that trains a model in float32 on a Parquet of conversations; overrides may follow.

    Args:
        model: folder of the model.
        parquet: with the column `messages`.
        folder: for whatever it writes.
        batch: rows of a step.
        micro: rows of a micro-batch.
        lr: peak learning rate.
    """
    return [
        *(sys.executable, "-m", "verl.trainer.sft_trainer_ray", f"data.train_files={parquet}"),
        *(f"data.train_batch_size={batch}", f"data.micro_batch_size_per_gpu={micro}", "data.use_dynamic_bsz=False"),
        *(f"model.path={model}", "model.use_remove_padding=False", "model.enable_gradient_checkpointing=False"),
        *("+model.override_config.attn_implementation=sdpa", "engine.strategy=fsdp2", "engine.use_torch_compile=False"),
        *("engine.model_dtype=fp32", f"+engine.mixed_precision={FP32}", f"optim.lr={lr}"),
        *("trainer.device=cpu", "trainer.resume_mode=disable", f"trainer.default_local_dir={folder}/checkpoints"),
        f"hydra.run.dir={folder}/hydra",
    ]


def closed_model(folder: Path) -> Path:
    """Make a copy of the tiny model whose chat template writes nothing behind a turn, and return its folder.

    verl's SFT learns whatever the template writes there as well, ours a response up to the end of its turn.
    """
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    template = folder / "chat_template.jinja"
    before = template.read_text()
    after = before.replace("<|im_end|>\n{% endfor %}", "<|im_end|>{% endfor %}")
    if after == before:
        raise ValueError(f"{template} has no line end behind a turn to take away.")
    template.write_text(after)
    return folder
