"""Intervals against their defining equations, and against published ones."""

from __future__ import annotations

import math

import pytest
from support.report_runs import ends_of

from verl_ee.report.intervals import correlation_of, newcombe, pooled, wilson
from verl_ee.run.stage_result import Share


@pytest.mark.parametrize(("successes", "n"), [(0, 100), (1, 100), (34, 100), (150, 300), (300, 300), (1, 1), (7, 9)])
def test_wilsons_interval_solves_its_equation(successes: int, n: int) -> None:
    interval = wilson(Share(successes / n, n))
    assert (interval.low, interval.high) == pytest.approx(ends_of(successes / n, n), abs=1e-9)
    assert 0.0 <= interval.low <= successes / n <= interval.high <= 1.0


def test_newcombes_interval_matches_the_published_one() -> None:
    # Newcombe 1998, table II, case (a) 56/70 - 48/80, method 10.
    interval = newcombe(Share(56 / 70, 70), Share(48 / 80, 80))
    assert (interval.low, interval.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_newcombes_interval_is_made_from_both_score_intervals() -> None:
    one, two = ends_of(0.6, 300), ends_of(0.0, 200)
    interval = newcombe(Share(0.6, 300), Share(0.0, 200))
    assert interval.low == pytest.approx(0.6 - math.sqrt((0.6 - one[0]) ** 2 + two[1] ** 2), abs=1e-9)
    assert interval.high == pytest.approx(0.6 + (one[1] - 0.6), abs=1e-9)


def pairs_of(*counts: int) -> list[tuple[bool, bool]]:
    """Pairs that succeeded in both, in the first alone, in the second alone, in neither."""
    cells = ((True, True), (True, False), (False, True), (False, False))
    return [pair for pair, count in zip(cells, counts, strict=True) for _ in range(count)]


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        # Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33: airway hyper-responsiveness.
        ((1, 1, 7, 12), (-0.507, -0.026)),
        # Altman, Machin, Bryant, Gardner 2000, Statistics with Confidence, table 6.2.
        ((14, 5, 0, 22), (0.011, 0.226)),
    ],
)
def test_the_paired_interval_matches_published_ones(counts: tuple[int, ...], published: tuple[float, float]) -> None:
    pairs = pairs_of(*counts)
    first, second = (Share(sum(pair[side] for pair in pairs) / len(pairs), len(pairs)) for side in (0, 1))
    interval = newcombe(first, second, correlation_of(pairs))
    assert (interval.low, interval.high) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize(
    ("counts", "expected"),
    # Uncorrected they would be 1, -1 and 500/sqrt(50 50 70 30); where one side never changes there is none.
    [
        ((50, 0, 0, 50), 0.98),
        ((0, 50, 50, 0), -1.0),
        ((40, 10, 30, 20), 450 / math.sqrt(50 * 50 * 70 * 30)),
        ((5, 0, 5, 0), 0.0),
    ],
)
def test_the_correlation_of_paired_outcomes(counts: tuple[int, ...], expected: float) -> None:
    assert correlation_of(pairs_of(*counts)) == pytest.approx(expected)


def test_pooling_counts_episodes() -> None:
    whole = pooled([Share(0.5, 100), Share(0.2, 300)])
    assert (whole.value, whole.episodes) == (pytest.approx(0.275), 400)
    assert pooled([Share(1.0, 3), Share(1.0, 7)]) == Share(1.0, 10)
