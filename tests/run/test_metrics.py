"""The metrics file: what a kill leaves is dropped or left out, and what no kill explains is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.report_runs import metric_rows, write_run

from verl_ee.errors import StoreError
from verl_ee.run.metrics import MetricStep, RunMetrics, append_step, drop_steps_after, read_metrics


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    steps = [MetricStep("imitation", 1, {"imitation/loss": 0.5}), MetricStep("grpo", 1, {"lr": 1e-5})]
    for step in steps:
        append_step(path, step)
    assert path.read_text().splitlines()[0] == '{"stage": "imitation", "step": 1, "imitation/loss": 0.5}'
    metrics = read_metrics(path)
    assert (metrics.mid_training, metrics.grpo, metrics.cut) == ((steps[0],), (steps[1],), 0)


def test_a_resumed_job_drops_the_rows_of_steps_that_it_takes_again(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run").metrics_path
    kept = [row for row in metric_rows() if row["step"] <= (2 if row["stage"] == "grpo" else 7)]
    with path.open("a") as file:
        file.write('{"stage": "grpo", "st')
    drop_steps_after(path, mid_training=7, grpo=2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == kept
    drop_steps_after(path, mid_training=6, grpo=0)
    metrics = read_metrics(path)
    assert ([step.step for step in metrics.mid_training], metrics.grpo) == ([1, 2, 3, 4, 5, 6], ())
    drop_steps_after(tmp_path / "none.jsonl", 1, 1)
    assert not (tmp_path / "none.jsonl").exists()


def test_the_last_row_of_a_repeated_step_counts(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run").metrics_path
    with path.open("a") as file:
        file.write('{"stage": "imitation", "step": 7, "imitation/loss": 0.5}\n')
        file.write('{"stage": "grpo", "step": 3, "early_experience/optimizer_steps": 11}\n')
    metrics = read_metrics(path)
    assert [step.step for step in metrics.mid_training] == list(range(1, 9))
    assert metrics.mid_training[6].values == {"imitation/loss": 0.5}
    assert [step.values["early_experience/optimizer_steps"] for step in metrics.grpo] == [3.0, 4.0, 11.0]


@pytest.mark.parametrize("cut", range(1, len('{"stage": "grpo", "step": 4}')))
def test_a_row_cut_off_by_a_kill_is_counted_and_left_out(tmp_path: Path, cut: int) -> None:
    path = write_run(tmp_path / "run").metrics_path
    with path.open("a") as file:
        file.write('{"stage": "grpo", "step": 4}'[:cut])
    metrics = read_metrics(path)
    assert (metrics.cut, len(metrics.grpo)) == (1, 3)
    with path.open("a") as file:
        file.write('{"stage": "grpo", "step": 5}\n')
    metrics = read_metrics(path)
    assert (metrics.cut, [step.step for step in metrics.grpo]) == (1, [1, 2, 3, 5])


@pytest.mark.parametrize("line", ["{", '{"step": 1}', '["stage"]', '{"stage": "grpo", "step": "x"}', "\x00\x00"])
def test_a_line_that_no_kill_explains_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    path = write_run(tmp_path / "run").metrics_path
    path.write_text(json.dumps(metric_rows()[0]) + f"\n{line}\n" + json.dumps(metric_rows()[1]) + "\n")
    with pytest.raises(StoreError, match=r"metrics\.jsonl, line 2: "):
        read_metrics(path)


def test_a_run_that_ended_before_its_first_step_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == RunMetrics((), (), 0)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StoreError, match=r"metrics\.jsonl cannot be read \(Is a directory\)"):
        read_metrics(tmp_path / "metrics.jsonl")
