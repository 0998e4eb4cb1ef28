"""The description of rationales: counts per gate, and samples of both kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.report_runs import cells

from verl_ee.errors import StoreError
from verl_ee.experience.files.parquet import write_table
from verl_ee.experience.state_ref import StateRef
from verl_ee.objectives.reflection.rationales import RATIONALE_SCHEMA, RATIONALES_FILE, Rationale
from verl_ee.report import rationales_text


def test_rationales_are_counted_and_shown(tmp_path: Path) -> None:
    rationales = [
        Rationale(StateRef(0, 0), "I open it.", "policy", ("a",)),
        Rationale(StateRef(0, 1), "I close it.", "policy", ("b",)),
        Rationale(StateRef(1, 0), "I.", "template", ("c",), "length", "is short"),
    ]
    write_table(tmp_path / RATIONALES_FILE, [rationale.to_row() for rationale in rationales], RATIONALE_SCHEMA, {})
    text = rationales_text(tmp_path, samples=5)
    assert text.startswith(f"rationales: {tmp_path}, 3 states, written by policy, template\n")
    assert cells(text, "accepted") == ["accepted", "2", "66.7"]
    assert cells(text, "length") == ["length", "1", "33.3"]
    assert "--- trajectory 0, step 1: accepted\nI close it." in text
    assert text.endswith("--- trajectory 1, step 0: length: is short\nI.")
    assert rationales_text(tmp_path).count("---") == 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"reflections\.parquet is missing"):
        rationales_text(tmp_path)
