"""Examples at the paper's size: `make bench BENCH=size`; ROWS=2000 makes it small.

World-model rows of about 2,000 tokens are encoded with the tokenizer of Qwen3, once as a stage does it and once with
`datasets.map` in two processes that do nothing else. A store of five times as many branches, with short texts, is
inspected and exported. Memory is that of one process alone, above the same process before it has read anything.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.real_tokenizers import MODELS, fetch, load

from benchmarks.figures import AtMost, Report
from verl_ee.config import EarlyExperienceConfig, PromptConfig, parse
from verl_ee.envs import ExpertStep, ExpertTrajectory
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import Branch, Transition, write_store
from verl_ee.objectives.examples import Example, LengthLimits
from verl_ee.objectives.files.example_files import ExampleFiles
from verl_ee.objectives.files.example_tables import PartEncoder
from verl_ee.objectives.files.row_files import export_parquet
from verl_ee.objectives.stage_data import StageData, StageRows
from verl_ee.prompts import prompt_format

ROWS = int(os.environ.get("ROWS", "200000"))
MANY = 35 * ROWS // 10
"""Rows whose token ids are drawn, not encoded: 700,000."""
BRANCHES = 5 * ROWS
"""Branches of the store that is inspected and exported: a million."""
STEPS, BATCH = 25, 16
COMMON = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could"
)
GIB = 2**30
LIMITS = LengthLimits(4096, 4096, 4096)


def text(rng: random.Random, count: int) -> str:
    """Return a text of so many words."""
    return " ".join(rng.choices(COMMON.split(), k=count))


@dataclass(frozen=True)
class World:
    """What stores and experts are made of.

    Attributes:
        rows: branches, roughly.
        k: branches of a state.
        words: words of an observation.
    """

    rows: int
    k: int = 4
    words: int = 190

    def trajectories(self) -> list[ExpertTrajectory]:
        """Return experts with a state for every `k` rows; the same ones at every call."""
        rng, made = random.Random(0), []
        for number in range(max(1, self.rows // (STEPS * self.k))):
            steps = [ExpertStep(text(rng, self.words), text(rng, 8), admissible_actions=None) for _ in range(STEPS)]
            end = text(rng, self.words)
            made.append(ExpertTrajectory("test/Text-v0", "1", f"task {number}", text(rng, 12), tuple(steps), end, True))
        return made

    def write(self, folder: Path) -> None:
        """Write a store with `k` branches of every state."""
        rng, transitions, branches = random.Random(1), [], []
        for index in range(len(self.trajectories())):
            for step in range(STEPS):
                for order in range(self.k):
                    key = f"{index:06d}{step:03d}{order:02d}"
                    outcome = Outcome(text(rng, 8), text(rng, self.words), valid=True, done=False)
                    transitions.append(Transition(key, key[:-2], f"task {index}", (), outcome))
                    branches.append(Branch(StateRef(index, step), order, "policy", "", "", key))
        write_store(folder, transitions, branches, {})


MANY_SHORT = World(BRANCHES, k=40, words=30)


def config() -> EarlyExperienceConfig:
    """Return a job with one stage, the world model."""
    stage = {"objectives": ["world_model"], "epochs": 1, "lr": 1.0, "batch_size": BATCH}
    keys = {"method": "test", "environment": {"id": "test/Text-v0"}, "experts": "experts.jsonl"}
    return parse({**keys, "collect": {"world_model": {}}, "stages": {"world_model": stage}})


def tokenizer(folder: Path) -> Any:
    """Return the tokenizer of Qwen3."""
    return load(folder / "real", next(model for model in MODELS if model.template == "qwen3_instruct_2507"))


class Peak:
    """The most memory of this process beyond that at the beginning, in bytes, looked at twice a second.

    Memory is what no file backs (`RssAnon`): the system takes pages of mapped files back when it needs them.
    """

    def __init__(self) -> None:
        self._idle = self._memory()
        self._ended = threading.Event()
        self.extra = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        self._look()
        return self.extra

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self._look()

    def _look(self) -> None:
        self.extra = max(self.extra, self._memory() - self._idle)

    def _memory(self) -> int:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) * 1024


def write_store_of_rows(folder: Path, rows: int) -> dict[str, float]:
    """Write the store whose rows are encoded."""
    World(rows).write(folder / "store")
    return {}


def write_many(folder: Path, _: int) -> dict[str, float]:
    """Write the store that is inspected and exported."""
    MANY_SHORT.write(folder / "many")
    return {}


def inspect(folder: Path, _: int) -> dict[str, float]:
    """Describe the store; return seconds and memory."""
    from verl_ee.report import store_text

    peak, began = Peak(), time.perf_counter()
    store_text(folder / "many", 3)
    return {"seconds": time.perf_counter() - began, "gib": peak.end() / GIB}


def export(folder: Path, _: int) -> dict[str, float]:
    """Export the rows of the store; return seconds, memory and rows."""
    experts = MANY_SHORT.trajectories()
    peak, began = Peak(), time.perf_counter()
    rows = StageRows(config(), experts, prompt_format(PromptConfig()), {"world_model": folder / "many"}, folder)
    (count,) = export_parquet(folder / "exported", {"world_model": rows.rows("world_model")}).values()
    return {"rows": count, "seconds": time.perf_counter() - began, "gib": peak.end() / GIB}


def encode(folder: Path, rows: int) -> dict[str, float]:
    """Encode as a stage does, then read some batches; return seconds, memory and tokens."""
    import ray

    from verl_ee.trainer.data.encoding_workers import EncodingWorkers
    from verl_ee.trainer.rollout.tokens import encoder_for

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    encoder = PartEncoder(encoder_for(tokenizer(folder), "qwen3", {}), LIMITS)
    experts = World(rows).trajectories()
    peak, began = Peak(), time.perf_counter()
    files = ExampleFiles(folder / "encoded", encoder, asdict(LIMITS), EncodingWorkers(encoder))
    stores = {"world_model": folder / "store"}
    data = StageData(config(), experts, prompt_format(PromptConfig()), files, stores, folder)
    examples = data.examples("world_model")
    rng = random.Random(2)
    first = [examples[rng.randrange(len(examples))] for _ in range(BATCH)]
    seconds = time.perf_counter() - began
    tokens = sum(map(len, first)) / BATCH
    for _ in range(200 * BATCH):
        len(examples[rng.randrange(len(examples))])
    return {"rows": len(examples), "seconds": seconds, "gib": peak.end() / GIB, "tokens_per_row": tokens}


def drawn(folder: Path, rows: int) -> dict[str, float]:
    """Write examples whose ids are drawn; return seconds and memory."""

    def made() -> Iterator[Example]:
        rng = random.Random(3)
        ids = tuple(rng.randrange(150_000) for _ in range(2000))
        for number in range(rows):
            at = rng.randrange(1000)
            yield Example(ids[at:] + ids[: at - 200], ids[at - 200 : at] or ids[:200], "world_model", 1.0, str(number))

    peak, began = Peak(), time.perf_counter()
    files = ExampleFiles(folder / "drawn", PartEncoder(None, LIMITS), {})  # type: ignore[arg-type]
    examples = files.examples("world_model", [], {"world_model": made}, {"world_model": rows})
    return {"rows": len(examples), "seconds": time.perf_counter() - began, "gib": peak.end() / GIB}


def reference(folder: Path, rows: int) -> dict[str, float]:
    """Encode the same conversations with `datasets.map`; return seconds."""
    from datasets import Dataset

    data = StageData(
        config(),
        World(rows).trajectories(),
        prompt_format(PromptConfig()),
        ExampleFiles(folder, PartEncoder(None, LIMITS), {}),  # type: ignore[arg-type]
        {"world_model": folder / "store"},
        folder,
    )
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": row.messages}) + "\n" for row in data.rows("world_model"))
    dataset = Dataset.from_json(str(folder / "rows.jsonl"), cache_dir=str(folder / "cache"))
    qwen = tokenizer(folder)

    def ids(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": qwen.apply_chat_template(row["messages"], tokenize=True, return_dict=False)}

    began = time.perf_counter()
    dataset.map(ids, num_proc=2, remove_columns=["messages"])
    return {"seconds": time.perf_counter() - began}


PARTS = {
    "store": write_store_of_rows,
    "encode": encode,
    "drawn": drawn,
    "reference": reference,
    "many": write_many,
    "inspect": inspect,
    "export": export,
}


def measured(part: str, folder: Path, rows: int) -> dict[str, float]:
    """Run a part in a process of its own and return what it measured."""
    command = [sys.executable, "-m", "benchmarks.size", part, str(folder), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{part} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    """Print the figures, and return whether one misses its threshold."""
    if len(sys.argv) > 1:
        name, where, rows = sys.argv[1:]
        print(json.dumps(PARTS[name](Path(where), int(rows))))
        return 0
    report = Report()
    with tempfile.TemporaryDirectory(prefix="verl_ee-") as name:
        folder = Path(name)
        fetch(folder / "real")
        measured("store", folder, ROWS)
        plain, ours, again = (measured(part, folder, ROWS) for part in ("reference", "encode", "encode"))
        many = measured("drawn", folder, MANY)
        shutil.rmtree(folder / "drawn")
        measured("many", folder, BRANCHES)
        tools = {part: measured(part, folder, BRANCHES) for part in ("inspect", "export")}
    ratio = ours["seconds"] / plain["seconds"]
    report.line(
        {"name": "size/encode", "ours": ours["seconds"], "reference": plain["seconds"], "ratio_to_reference": ratio}
        | {"unit": "seconds", "rows": ours["rows"], "tokens_per_row": ours["tokens_per_row"]},
        {"ratio_to_reference": AtMost(1.25)},
    )
    report.line({"name": "size/driver", "ours": ours["gib"], "unit": "GiB", "rows": ours["rows"]}, {"ours": AtMost(2)})
    report.line({"name": "size/resume", "ours": again["seconds"], "unit": "seconds"}, {"ours": AtMost(20)})
    report.line({"name": "size/many", "ours": many["gib"], "unit": "GiB", "rows": many["rows"]}, {"ours": AtMost(2)})
    for part, done in tools.items():
        line = {"name": f"size/{part}", "ours": done["gib"], "unit": "GiB", "branches": BRANCHES}
        report.line(line | {"seconds": done["seconds"]}, {"ours": AtMost(2)})
    return 0 if report.met else 1


if __name__ == "__main__":
    sys.exit(main())
