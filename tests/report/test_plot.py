"""The plot of a run: a picture with something on it, of a finished run and of one that has just begun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.report_runs import metric_rows, write_run

from verl_ee.report import report, save_plot


def test_the_plot_is_a_picture_with_something_on_it(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "new" / "plot.png"
    save_plot(report(write_run(tmp_path / "run")), path)
    picture = imread(path)
    assert min(picture.shape[:2]) > 500
    assert picture[..., :3].std() > 0.05
    assert [item.name for item in path.parent.iterdir()] == ["plot.png"]


@pytest.mark.parametrize("kept", ["world_model", "grpo", ""])
def test_the_plot_of_an_unfinished_run_is_drawn(tmp_path: Path, kept: str) -> None:
    folder = write_run(tmp_path / "run", stages=[])
    lines = [json.dumps(row) + "\n" for row in metric_rows() if row["stage"] == kept]
    folder.metrics_path.write_text("".join(lines))
    result = report(folder)
    assert "no stage has been evaluated" in result.text
    save_plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
