"""Wilson's interval of a share, in closed form."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """(low, high) of a rate of which `successes` of n independent tries are known (Wilson 1927, without
    continuity correction); n may be an effective number. Without a try it is (0, 1)."""
    return wilson_at(successes, n, normal(level))


def wilson_at(successes: float, n: float, z: float) -> tuple[float, float]:
    """`wilson` for a quantile z of one's own, such as Student's."""
    if n <= 0:
        return 0.0, 1.0
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n))
    # at a rate of 0 or 1 the end is exact, and rounding must not leave it beyond
    return max(0.0, min(p, middle - reach)), min(1.0, max(p, middle + reach))


def normal(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
