"""95 % intervals of success shares and of their differences, in closed form.

Both treat the tasks as independent draws and the policies as fixed. They say how far a share may lie from that of the
same policies on endless episodes, not how far another seed's training would have ended: for that, look at the seeds.

Sources:
    Wilson, E. B. (1927). Probable inference, the law of succession, and statistical inference. Journal of the
        American Statistical Association 22, 209-212.
    Newcombe, R. G. (1998). Interval estimation for the difference between independent proportions: comparison of
        eleven methods. Statistics in Medicine 17, 873-890 (method 10).
    Newcombe, R. G. (1998). Improved confidence intervals for the difference between binomial proportions based on
        paired data. Statistics in Medicine 17, 2635-2650 (method 10).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from verl_ee.run.stage_result import Share

Z = 1.959963984540054
"""97.5 % quantile of the standard normal distribution: 2.5 % on either side."""


@dataclass(frozen=True)
class Interval:
    """Lower and upper end of a 95 % interval, as a share or a difference of shares."""

    low: float
    high: float


def wilson(share: Share) -> Interval:
    """Return the score interval of a share (Wilson 1927).

    With p the share and n the episodes, its ends are the solutions t of (p - t)^2 = Z^2 t (1 - t) / n, that is
    (p + Z^2/2n +- Z sqrt(p (1 - p)/n + Z^2/4n^2)) / (1 + Z^2/n). It never leaves [0, 1] and has width at p = 0 and
    p = 1, where the normal approximation has none.
    """
    p, n = share.value, share.episodes
    scale = 1.0 + Z**2 / n
    centre = (p + Z**2 / (2 * n)) / scale
    half = Z * math.sqrt(p * (1.0 - p) / n + Z**2 / (4 * n**2)) / scale
    # Rounding may leave the ends beside p = 0 or p = 1, where they meet it exactly.
    return Interval(min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def newcombe(later: Share, earlier: Share, correlation: float = 0.0) -> Interval:
    """Return the interval of `later.value - earlier.value` (Newcombe 1998, method 10 of either paper).

    With d the difference, [l, u] Wilson's interval of each share and r the correlation, it is
    [d - sqrt(a^2 - 2 r a b + b^2), d + sqrt(e^2 - 2 r e f + f^2)] with a = p1 - l1, b = u2 - p2, e = u1 - p1 and
    f = p2 - l2.

    Args:
        later: p1.
        earlier: p2.
        correlation: correlation of the outcomes of one episode in both, from `correlation_of`; 0: they are independent.
    """
    difference = later.value - earlier.value
    around_later, around_earlier = wilson(later), wilson(earlier)
    below = _side(later.value - around_later.low, around_earlier.high - earlier.value, correlation)
    above = _side(around_later.high - later.value, earlier.value - around_earlier.low, correlation)
    return Interval(difference - below, difference + above)


def correlation_of(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Return the correlation of paired outcomes, with the continuity correction of Newcombe (1998), paired data.

    There are n pairs: a succeeded in both, b in the first alone, c in the second alone and d in neither. It is
    (ad - bc) / sqrt((a + b)(c + d)(a + c)(b + d)), where a numerator above 0 loses n/2, to 0 at least; 0 if all
    outcomes of one side are equal.

    Args:
        pairs: pairs of outcomes of the same episode.
    """
    counts = Counter(pairs)
    a, b, c, d = counts[True, True], counts[True, False], counts[False, True], counts[False, False]
    spread = (a + b) * (c + d) * (a + c) * (b + d)
    if not spread:
        return 0.0
    covariance = float(a * d - b * c)
    if covariance > 0.0:
        covariance = max(covariance - len(pairs) / 2, 0.0)
    return covariance / math.sqrt(spread)


def pooled(shares: Sequence[Share]) -> Share:
    """Return the share over all episodes together, so a run counts by the episodes that it played.

    Args:
        shares: at least one.
    """
    episodes = sum(share.episodes for share in shares)
    return Share(min(sum(share.value * share.episodes for share in shares) / episodes, 1.0), episodes)


def _side(later: float, earlier: float, correlation: float) -> float:
    """Return how far one end of the interval lies from the difference."""
    return math.sqrt(max(later**2 - 2 * correlation * later * earlier + earlier**2, 0.0))
