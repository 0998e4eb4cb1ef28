"""Whole episodes as samples beside single turns: `make bench BENCH=samples`.

Both jobs have the format `react` with whole histories, the same demonstrations, one epoch of imitation, and some steps
of GRPO. Rates are episodes per second: demonstrations learned, and episodes that GRPO plays and learns from. Tokens are
those that the actor computes, without padding. Seconds of imitation are whole ones from the job's log, and contain its
checkpoint. The first step of GRPO does not count: much is built in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from benchmarks.figures import Report, Sample
from benchmarks.settings import ROOT

DEMONSTRATIONS, GRPO_STEPS, EPISODES = 100, 3, 64
"""Demonstrations; steps of GRPO; episodes of one step, as the recipe has them."""
REACT = (
    "early_experience.prompt.format=react",
    "early_experience.history_length=null",
    "early_experience.evaluate=False",
    "early_experience.stages.imitation.epochs=1",
    f"trainer.total_training_steps={GRPO_STEPS}",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "trainer.logger=[console,file]",
)
LENGTHS: Mapping[str, tuple[str, ...]] = {
    "turn": ("data.max_prompt_length=2048", "data.max_response_length=32"),
    "episode": ("data.max_prompt_length=512", "data.max_response_length=1600", "early_experience.max_turn_tokens=32"),
}
"""Room for 16 turns, wherever they stand."""
TIMES = ("timing_s/gen", "timing_s/old_log_prob", "timing_s/update_actor")
"""verl's seconds of a step that depend on the samples; a job skips what it does not need."""


class Jobs:
    """Jobs of both kinds, and what they took.

    Attributes:
        demonstration: tokens of a demonstration in one epoch of imitation, by kind.
        grpo: tokens and seconds of each step of GRPO that counts, by kind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.demonstration: dict[str, float] = {}
        self.grpo: dict[str, list[tuple[float, float]]] = {"turn": [], "episode": []}

    def run(self, samples: str) -> Sample:
        """Run a job; the sample is its imitation."""
        out = self._folder / samples
        shutil.rmtree(out, ignore_errors=True)
        log = out / "log.jsonl"
        environ = os.environ | {
            "METHOD": "imitation",
            "OUT": str(out),
            "DEMOS": str(DEMONSTRATIONS),
            "EPISODES": "16",
            "VERL_FILE_LOGGER_PATH": str(log),
        }
        lengths = (*LENGTHS[samples], "actor_rollout_ref.rollout.max_model_len=2112")
        command = [str(ROOT / "recipes/household/run.sh"), *REACT, *lengths, f"early_experience.samples={samples}"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=ROOT)
        output = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"The job with samples={samples} failed:\n{output[-3000:]}")
        steps = [json.loads(line)["data"] for line in log.read_text(encoding="utf-8").splitlines()]
        updates = [step for step in steps if "timing_s/update_actor" in step][1:]
        self.grpo[samples] += [
            (step["perf/total_num_tokens"], sum(step.get(key, 0) for key in TIMES)) for step in updates
        ]
        self.demonstration[samples] = _tokens(out) / DEMONSTRATIONS
        found = re.search(r"imitation: \d+ steps.*\((\d+) s\)", output)
        if found is None:
            raise RuntimeError(f"The log of the job with samples={samples} does not say how long imitation took.")
        return Sample(DEMONSTRATIONS / int(found[1]))


def _tokens(out: Path) -> int:
    """Return the tokens of all examples of imitation."""
    paths = (out / "early_experience/encoded/imitation").glob("*.arrow")
    tables = (pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths)
    return sum(len(table.column("tokens").combine_chunks().values) for table in tables)


def main() -> int:
    """Print the figures; none has a threshold."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="verl_ee-") as name:
        jobs = Jobs(Path(name))
        report.figure(
            "samples/imitation",
            lambda: jobs.run("episode"),
            lambda: jobs.run("turn"),
            constants={"unit": "demonstrations per second, samples=episode beside samples=turn"},
        )
        rates = {kind: [EPISODES / seconds for _, seconds in steps] for kind, steps in jobs.grpo.items()}
        ratios = [one / other for one, other in zip(rates["episode"], rates["turn"], strict=True)]
        report.line(
            {
                "name": "samples/grpo",
                "ours": statistics.median(rates["episode"]),
                "reference": statistics.median(rates["turn"]),
                "ratio_to_reference": statistics.median(ratios),
                "spread": [min(ratios), max(ratios)],
                "runs": report.runs,
                "unit": "episodes per second, samples=episode beside samples=turn",
            }
        )
        played = {kind: statistics.mean(count for count, _ in steps) / EPISODES for kind, steps in jobs.grpo.items()}
        for name, tokens in (("demonstration", jobs.demonstration), ("episode", played)):
            ratio = tokens["episode"] / tokens["turn"]
            line = {"name": f"samples/tokens_per_{name}", "ours": tokens["episode"], "reference": tokens["turn"]}
            report.line(line | {"ratio_to_reference": ratio, "runs": report.runs, "unit": "tokens"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
