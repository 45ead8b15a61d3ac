"""What a curve of accuracy against compute is made of: unbiased estimators and their intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def pass_at_k(correct: ArrayLike, n: ArrayLike, k: int) -> Floats:
    """The chance that at least one of `k` paths is right, estimated from `n >= k` paths of a problem.

    1 - C(n - c, k) / C(n, k), the mean over all k-subsets of the n paths: unbiased, unlike
    1 - (1 - c/n)^k. Element-wise over problems.

    Args:
        correct: c, the number of right paths of each problem.
        n: the number of paths drawn for each problem.
        k: from 1 to n.

    Source: Chen et al., "Evaluating large language models trained on code" (arXiv 2107.03374).
    """
    c, total = np.broadcast_arrays(np.asarray(correct, np.int64), np.asarray(n, np.int64))
    if k < 1 or (total < k).any():
        raise ValueError(f"k: got {k}, expected 1 to n, where the smallest n is {total.min()}")
    if ((c < 0) | (c > total)).any():
        raise ValueError("correct: got a value below 0 or above n, expected 0 to n")
    missed = np.ones(c.shape)
    for i in range(k):  # product of (n - c - i) / (n - i): no factorial is formed
        missed *= np.clip(total - c - i, 0, None) / (total - i)
    return 1 - missed


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `values` (one a problem) and its percentile bootstrap interval: (mean, low, high).

    Problems are resampled, not paths: the interval says how far another set of as many problems could
    lie. A single value gives (value, value, value).
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError(
            f"values: got shape {list(data.shape)}, expected at least one value a problem"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, expected a number between 0 and 1")
    rng = np.random.default_rng(seed)
    means = data[rng.integers(data.size, size=(resamples, data.size))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(data.mean()), float(low), float(high)
