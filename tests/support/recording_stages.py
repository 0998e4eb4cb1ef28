"""The stages of a job with stand-ins for everything that verl builds, which note the calls in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from support.actors import PAIRS
from support.jobs import ROOT
from transformers import AutoTokenizer

from verl_ee.config import EarlyExperienceConfig
from verl_ee.run.folder import RunFolder
from verl_ee.run.stage_result import BASE
from verl_ee.run.summary import RunSummary
from verl_ee.trainer.actor.reference import Reference
from verl_ee.trainer.data.data_preparation import DataPreparation
from verl_ee.trainer.episode_counts import FailureBudget
from verl_ee.trainer.evaluation import StageEvaluation
from verl_ee.trainer.mid_training import MidTraining
from verl_ee.trainer.rollout.servers import SharedServers
from verl_ee.trainer.rollout.tokens import encoder_for
from verl_ee.trainer.stages import StageRunner

SUMS = {f"sums/{name}/{key}": [1.0] for name in ("world_model", "imitation") for key in ("nll", "tokens")}
RESULTS = {
    "update_supervised": {"metrics": {**SUMS, "grad_norm": [1.0]}},
    "checkpoint_bytes": [1],
    "policy_fingerprint": ["hash"],
}
"""Results of the workers' methods."""


class CallRecorder:
    """Notes the name of every method that is called on it."""

    def __init__(self, calls: list[str], results: Mapping[str, Any] | None = None) -> None:
        self._calls, self._results = calls, results or {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            self._calls.append(name)
            return self._results.get(name)

        return call


def recorded_stages(
    early: EarlyExperienceConfig,
    root: Path,
    calls: list[str],
    training: Any = None,
    max_prompt_length: int = 512,
) -> StageRunner:
    """Return the stages of a job that notes its calls.

    Args:
        early: `early_experience` of the job.
        root: folder of the run.
        calls: grows with every call of workers and servers, every evaluation and every checkpoint.
        training: trains a stage; None: really, on workers that do nothing.
        max_prompt_length: `data.max_prompt_length`.
    """
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/tiny_base/model")
    config = OmegaConf.create({"data": {"max_prompt_length": max_prompt_length, "max_response_length": 64}})
    folder = RunFolder(root)
    # A job makes the folder when it locks it.
    folder.files.mkdir(parents=True, exist_ok=True)
    summary = RunSummary.load(folder.summary_path, 0)
    evaluation = StageEvaluation(summary, list(early.stages)[-1], BASE, FailureBudget(early))
    encoder = encoder_for(tokenizer, "qwen2", {})
    workers: Any = CallRecorder(calls, RESULTS)
    log: Any = CallRecorder([])
    nothing: Any = lambda: None  # noqa: E731
    return StageRunner(
        early,
        folder,
        summary,
        DataPreparation(config, early, folder, summary, tokenizer, encoder, nothing, nothing, evaluation.begin),
        training or MidTraining(workers, folder, log, early.save_freq, PAIRS, tokenizer.pad_token_id or 0),
        evaluation,
        workers,
        SharedServers(CallRecorder(calls)),  # type: ignore[arg-type]
        Reference(None, "none", config),
        2,
        lambda: calls.append("validate"),
        lambda step: calls.append(f"save {step}"),
    )
