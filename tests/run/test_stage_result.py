"""Success by split: names of splits, shares, and the order of stages."""

from __future__ import annotations

from verl_ee.run.stage_result import Share, StageResult, in_order


def test_a_split_is_the_last_part_of_its_data_source_unless_two_end_alike() -> None:
    sources = ["house/seen", "house/unseen", "shop/unseen"]
    result = StageResult.of("base", 1.0, dict.fromkeys(sources, 0.5), dict.fromkeys(sources, 2), {})
    assert list(result.success) == ["seen", "house/unseen", "shop/unseen"]
    assert list(result.episodes) == ["seen", "house/unseen", "shop/unseen"]


def test_a_split_without_a_number_has_no_share() -> None:
    result = StageResult("base", 1.0, {"seen": 0.25, "unseen": float("nan")}, {"seen": 8, "unseen": 8})
    assert result.shares == {"seen": Share(0.25, 8)}


def test_the_base_comes_first_and_grpo_last() -> None:
    names = ["grpo", "world_model", "imitation", "base"]
    ordered = in_order(StageResult(name, 0.0, {}, {}) for name in names)
    assert [stage.name for stage in ordered] == ["base", "world_model", "imitation", "grpo"]
