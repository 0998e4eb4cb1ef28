"""Columns of text."""

from __future__ import annotations

from verl_ee.report.columns import aligned, aligned_left


def test_the_first_column_is_aligned_to_the_left_and_the_others_to_the_right() -> None:
    rows = [["stage", "seconds", "%"], ["base", "1.0", "100.0"], ["imitation", "12.0", ""]]
    assert aligned(rows).split("\n") == [
        "stage      seconds      %",
        "base           1.0  100.0",
        "imitation     12.0",
    ]


def test_names_and_values_stand_in_two_columns() -> None:
    assert aligned_left([("states", "12"), ("seconds", "1.5")]) == "states   12\nseconds  1.5"
