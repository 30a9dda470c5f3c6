"""Statistics of a mean over a few seeds: Student's interval, a bootstrap, Holm's correction."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000
"""Number of draws of the bootstrap."""


class Interval(NamedTuple):
    """A mean over seeds, half of its 95 % interval by Student's t, and the two-sided p-value of a mean of 0."""

    mean: float
    half: float
    p: float


def interval(values: pd.Series) -> Interval:
    """The mean, interval and p-value of one value a seed. With one seed `half` and `p` are not a number."""
    mean, n = round(float(values.mean()), 9), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    t = abs(mean) / error if error > 0 else math.inf if mean else 0.0
    return Interval(mean, float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error, 2 * float(stats.t.sf(t, n - 1)))


def bootstrap(values: pd.Series) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, with seeds drawn with replacement. Every call draws the same."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values.to_numpy()[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(p: pd.Series) -> pd.Series:
    """p-values corrected for their number by Holm's step-down method; those that are not a number do not count."""
    ordered = p.dropna().sort_values()
    steps = ordered * np.arange(len(ordered), 0, -1)
    return steps.cummax().clip(upper=1).reindex(p.index)
