"""One job beside the same stages as separate verl jobs: `make bench BENCH=job`.

The separate road is what one does without this package: verl's SFT trainer on the world model, merge, SFT on imitation,
merge, GRPO from the merged model, each a process that starts from nothing. Both sides take the same rows, collected
before, the same number of optimizer steps of the same size, and the same GRPO (verl's single-turn agent, no
evaluation). Seconds are those of whole commands, start-up included: that is the point.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.figures import AtMost, Report, Sample
from benchmarks.settings import MODEL, ROOT, Settings, cpu

ENV = "verl_ee/Household-v0"
DEMONSTRATIONS = int(os.environ.get("DEMONSTRATIONS", "100"))
K, BATCH, GRPO_STEPS, LR = 1, 16, 2, 5e-4
RUNS = 3
"""Turns of each side, unless the environment variable RUNS says otherwise."""
AT_MOST = 0.6
"""Of the separate jobs' wall time, that one job may take."""
REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    return float(len(solution_str) % 2)
"""
GRPO = (
    *("algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=4", "actor_rollout_ref.actor.optim.lr=1e-5"),
    *("actor_rollout_ref.actor.ppo_mini_batch_size=8", "actor_rollout_ref.actor.use_dynamic_bsz=True"),
    *("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384", "actor_rollout_ref.rollout.max_num_seqs=64"),
    *("actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True", "actor_rollout_ref.rollout.max_model_len=512"),
    *("actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=32768", "data.train_batch_size=8"),
    *("data.max_prompt_length=448", "data.max_response_length=32", "trainer.val_before_train=False"),
    *(f"trainer.total_training_steps={GRPO_STEPS}", f"trainer.save_freq={GRPO_STEPS}", "trainer.test_freq=-1"),
    *("trainer.logger=[console]", "reward.custom_reward_function.name=compute_score"),
)


class Roads:
    """Both ways from the same files, and what each left on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._settings = folder, cpu()
        self.bytes: dict[str, int] = {}

    def prepare(self) -> None:
        """Write demonstrations, tasks, branches, and the rows of both stages for verl's SFT trainer."""
        experts, store, data = (str(self._folder / name) for name in ("experts.jsonl", "store", "rows"))
        self._ours("experts", "record", "--env", ENV, "-n", str(DEMONSTRATIONS), "--out", experts)
        self._ours("collect", "--env", ENV, "--experts", experts, "--out", store, "--k", str(K))
        files = ("--env", ENV, "--experts", experts, "--store", store)
        self._ours("export", *files, "--format", "verl-sft", "--out", data)
        tasks = self._folder / "tasks.parquet"
        self._ours("envs", "tasks", "--env", ENV, "--split", "train", "-n", "64", "--out", str(tasks))
        frame = pd.read_parquet(tasks)
        frame["agent_name"] = "single_turn_agent"
        frame.to_parquet(tasks)
        (self._folder / "reward.py").write_text(REWARD)

    def one_job(self) -> Sample:
        """Run one job with the flag."""
        out, early = self._fresh("one"), "early_experience"
        stages = [
            f"{early}.stages.{name}.{key}={value}"
            for name in ("world_model", "imitation")
            for key, value in {"epochs": 1, "lr": LR, "batch_size": BATCH, "schedule": "constant"}.items()
        ]
        return self._timed(
            "one",
            [
                self._grpo(
                    out,
                    str(MODEL),
                    *("+early_experience=iwm", f"{early}.environment.id={ENV}", f"{early}.evaluate=False"),
                    *(f"{early}.experts={self._folder}/experts.jsonl", f"{early}.save_freq=0", *stages),
                    f"+{early}.stores.world_model={self._folder}/store",
                )
            ],
        )

    def separate_jobs(self) -> Sample:
        """Run SFT, merge, SFT, merge and GRPO, one after the other."""
        out, model, commands = self._fresh("separate"), str(MODEL), []
        for name in ("world_model", "imitation"):
            rows = self._folder / "rows" / f"{name}.parquet"
            # verl's loader drops a last batch that is not full.
            steps = len(pd.read_parquet(rows)) // BATCH
            commands.append(self._sft(rows, model, out / name, steps))
            model = str(out / f"{name}_merged")
            shards = out / name / f"global_step_{steps}"
            merge = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
            commands.append([*merge, "--local_dir", str(shards), "--target_dir", model])
        commands.append(self._grpo(out / "grpo", model))
        return self._timed("separate", commands)

    def _sft(self, rows: Path, model: str, out: Path, steps: int) -> list[str]:
        return [
            *(sys.executable, "-m", "verl.trainer.sft_trainer_ray", f"data.train_files={rows}"),
            *(f"data.train_batch_size={BATCH}", "data.use_dynamic_bsz=True", "data.max_token_len_per_gpu=16384"),
            *(f"model.path={model}", "model.use_remove_padding=False", "model.enable_gradient_checkpointing=False"),
            *("+model.override_config.attn_implementation=sdpa", "engine.strategy=fsdp2", f"optim.lr={LR}"),
            *("engine.use_torch_compile=False", "trainer.device=cpu", "trainer.logger=[console]"),
            *("trainer.total_epochs=1", "trainer.resume_mode=disable", f"trainer.save_freq={steps}"),
            *(f"trainer.default_local_dir={out}", f"hydra.run.dir={out}/hydra"),
        ]

    def _grpo(self, out: Path, model: str, *overrides: str) -> list[str]:
        return [
            *(sys.executable, "-m", "verl.trainer.main_ppo", *self._settings.overrides, *GRPO, *overrides),
            *(f"data.train_files={self._folder}/tasks.parquet", f"data.val_files={self._folder}/tasks.parquet"),
            f"reward.custom_reward_function.path={self._folder}/reward.py",
            *(f"actor_rollout_ref.model.path={model}", f"trainer.default_local_dir={out}"),
            f"hydra.run.dir={out}/hydra",
        ]

    def _timed(self, name: str, commands: list[list[str]]) -> Sample:
        began = time.perf_counter()
        for command in commands:
            self._run(command)
        seconds = time.perf_counter() - began
        files = (path for path in (self._folder / name).rglob("*") if path.is_file())
        self.bytes[name] = sum(path.stat().st_size for path in files)
        return Sample(seconds, {"bytes": self.bytes[name]})

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, env=self._environ(self._settings), capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:4])} failed:\n{(done.stdout + done.stderr)[-3000:]}")

    def _ours(self, *arguments: str) -> None:
        self._run([sys.executable, "-m", "verl_ee.cli", *arguments])

    def _environ(self, settings: Settings) -> dict[str, str]:
        return settings.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            # verl's SFT trainer gives `ray.init` no arguments; it asks Ray for one logical GPU per worker.
            "RAY_OVERRIDE_RESOURCES": '{"CPU": 16, "GPU": 1}',
            "HF_HUB_OFFLINE": "1",
        }

    def _fresh(self, name: str) -> Path:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


def main() -> int:
    """Print the figure, and return whether one job took too long."""
    report = Report()
    if "RUNS" not in os.environ:
        report.runs = RUNS
    with tempfile.TemporaryDirectory(prefix="verl_ee-") as name:
        roads = Roads(Path(name))
        roads.prepare()
        report.figure(
            "job/separate_jobs",
            roads.one_job,
            roads.separate_jobs,
            None,
            {"ratio_to_reference": AtMost(AT_MOST)},
            {"unit": "seconds", "demonstrations": DEMONSTRATIONS, "grpo_steps": GRPO_STEPS},
        )
        report.line({"name": "job/bytes", "ours": roads.bytes["one"], "reference": roads.bytes["separate"]})
    return 0 if report.met else 1


if __name__ == "__main__":
    sys.exit(main())
