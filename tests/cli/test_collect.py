"""`verl-ee collect` and `verl-ee inspect`: predicted, collected once, and described."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.report_runs import cells

from verl_ee.cli.main import main

ID = "verl_ee/Household-v0"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    experts = tmp_path / "experts.jsonl"
    assert main(["experts", "record", "--env", ID, "-n", "1", "--out", str(experts)]) == 0
    given = ["--env", ID, "--experts", str(experts), "--out", str(tmp_path / "store")]
    return ["collect", *given, "--k", "2", "--restore", "replay", "--workers", "1"]


@pytest.mark.usefixtures("cluster")
def test_a_collection_is_predicted_then_made_once(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prices.yaml").write_text("env_steps: 0.5\n")
    priced = [*arguments, "--prices", str(tmp_path / "prices.yaml")]
    capsys.readouterr()
    assert main([*priced, "--dry-run"]) == 0
    predicted = cells(capsys.readouterr().out, "environment steps")[1]
    assert not (tmp_path / "store" / "branches.parquet").exists()
    assert main(priced) == 0
    shown = capsys.readouterr().out
    assert cells(shown, "restore") == ["restore", "replay"]
    assert cells(shown, "environment steps")[1] == predicted
    assert float(cells(shown, "money")[1]) == 0.5 * int(predicted.replace(",", ""))
    assert shown.endswith(f"store: {tmp_path}/store\n")
    assert main(priced) == 0
    assert "has been collected already" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "store"), "--samples", "1"]) == 0
    assert capsys.readouterr().out.count("--- trajectory 0, step ") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--alternatives", "policy"], ["--alternatives policy: a policy proposes in a job only", "exhaustive"]),
        (["--k", "-1"], ["--k -1", "greater than or equal to 0"]),
        (["--restore", "teleport"], ["--restore teleport", "'replay'"]),
    ],
)
def test_settings_that_cannot_be_served_are_refused(
    arguments: list[str], options: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    for word in words:
        assert word in line
    assert not (tmp_path / "store").exists()
