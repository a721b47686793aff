"""How sure a mean over problems is: percentile bootstrap; and pass@j from n samples."""

from __future__ import annotations

import math

import numpy as np

from selfevolve_jax.errors import UserError

_PURPOSE = 0xB007
_AT_ONCE = 1 << 22  # draws held in memory


def intervals(
    values_RxM: np.ndarray, seed: int, *, level: float = 0.95, resamples: int = 10_000
) -> np.ndarray:
    """float64 [M, 2]: the interval of each column's mean, low end and high.

    Problems are drawn with replacement, R of R, `resamples` times; the ends are the percentiles of the
    means at (1 ± level) / 2 (Efron 1979; percentile method). All columns see the same draws, so a
    column's interval does not depend on the others. Samples within a problem are not drawn again: the
    interval is about which problems were asked, not about which samples were drawn. Where all
    problems agree it has no width, however few they are.
    """
    values_RxM = np.asarray(values_RxM, np.float64)
    R = len(values_RxM)
    if not R or values_RxM.ndim != 2:
        raise ValueError(f"values of shape {values_RxM.shape}, not [problems, figures]")
    rng = np.random.default_rng([_PURPOSE, seed])
    means, chunk = [], max(1, _AT_ONCE // R)
    for start in range(0, resamples, chunk):
        picked = rng.integers(0, R, (min(chunk, resamples - start), R))
        means.append(np.stack([column[picked].mean(axis=1) for column in values_RxM.T], axis=1))
    tail = 100 * (1 - level) / 2
    return np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0).T


def pass_at(correct_R: np.ndarray, n: int, j: int) -> np.ndarray:
    """float64 [R]: the chance that of j samples, drawn from a problem's n without replacement, at least
    one is among its c correct ones: 1 − C(n−c, j) / C(n, j). Unbiased for j fresh samples (Chen et al.
    2021, arXiv 2107.03374, equation 1). UserError unless 1 ≤ j ≤ n."""
    if not 1 <= j <= n:
        raise UserError(f"pass@{j} cannot be told from {n} samples; it must lie between 1 and {n}.")
    table = [1 - math.comb(n - c, j) / math.comb(n, j) for c in range(n + 1)]  # exact integers
    return np.asarray(table)[np.asarray(correct_R, np.int64)]
