"""Whether draws follow a known distribution: Pearson's test, and Holm's correction for many at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def p_value(tokens, probabilities: np.ndarray) -> float:
    """Pearson's test; cells that expect fewer than 5 draws are pooled.

    A single draw of probability zero is settled without it, and so is all mass in one cell.
    """
    counts, expected = np.bincount(tokens, minlength=len(probabilities)), len(tokens) * probabilities
    if counts[probabilities == 0].any():
        return 0.0
    large = expected >= 5
    counts = np.append(counts[large], counts[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    if expected[-1] < 5:  # the pool is still too small to be a cell of its own
        counts[-2], expected[-2] = counts[-2] + counts[-1], expected[-2] + expected[-1]
        counts, expected = counts[:-1], expected[:-1]
    if len(counts) == 1:
        return 1.0
    return stats.chisquare(counts, expected).pvalue


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Each p-value after Holm's correction (1979): those below a rate are rejections.

    With m tests the k-th smallest is multiplied by m − k + 1, and by no less than those before it. If all
    hypotheses hold, the chance of even one rejection is at most the rate, however the tests depend.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = p_values.argsort()
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.maximum.accumulate(p_values[order] * factors).clip(max=1)
    return corrected
