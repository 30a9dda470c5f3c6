"""Statistics of a mean over a few seeds and test images: an interval, a bootstrap, Holm's correction.

Every seed is tested on the same images. A seed's margin therefore has two errors. One differs from seed to seed, and
Student's t knows it from their spread. The other is shared by all seeds, however many they are: their test images.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import optimize, special

LEVEL = 0.95
RESAMPLES = 10_000
"""Number of draws of the bootstrap."""
PERCENT = 100.0
"""Margin in percent of an image that one method has right and the other wrong."""


class Interval(NamedTuple):
    """A mean over seeds, half of its 95 % interval, and the two-sided p-value of a mean of 0."""

    mean: float
    half: float
    p: float


def interval(values: pd.Series, error: float = 0.0) -> Interval:
    """The mean, interval and p-value of one value a seed. With one seed `half` and `p` are not a number.

    error: standard error that all seeds share, as `images_error` gives it. Half the interval is the root of the squares
    of two halves: Student's t over the seeds, and the normal distribution for the shared error. The p-value is the one
    at which the interval of the level 1 - p ends at 0. Seeds that agree without any shared error tell nothing of their
    spread: the interval is then infinite.
    """
    values = values.round(9)  # 72.2 - 71.2 is not 1.0 in binary
    mean, n = round(float(values.mean()), 9), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    spread = float(values.std(ddof=1)) / math.sqrt(n) if values.nunique() > 1 else 0.0
    if spread == error == 0:
        return Interval(mean, math.inf, 1.0)

    def half(p: float) -> float:
        return math.hypot(special.stdtrit(n - 1, p / 2) * spread, special.ndtri(p / 2) * error)

    least = 1e-200  # a p-value below this is called 0
    if half(least) < abs(mean):
        return Interval(mean, half(1 - LEVEL), 0.0)
    p = optimize.brentq(lambda p: half(p) - abs(mean), least, 1.0, xtol=1e-15) if mean else 1.0
    return Interval(mean, half(1 - LEVEL), float(p))


def images_error(margins: Float[np.ndarray, "seeds images"]) -> float:
    """Standard error of a mean margin that all seeds share because they are tested on the same images; never 0.

    margins: of each image, in percent: 100 where only the first method has it right, -100 where only the second has.
    Seeds and images are taken as independent draws whose effects add up. The variance of the images' means, less what
    each seed's own errors put into it and their spread has counted, is then that of the images; an image more that
    changes sides is added to it. With one seed the two cannot be told apart, and all of the variance counts.
    """
    seeds, images = margins.shape
    one = (PERCENT / images) ** 2
    if images == 1:
        return math.sqrt(one)
    means = margins.mean(axis=0)
    shared = float(means.var(ddof=1)) / images
    if seeds > 1:
        by_seed = margins.mean(axis=1, keepdims=True)
        own = float(((margins - by_seed - means + means.mean()) ** 2).sum()) / ((seeds - 1) * (images - 1) * images)
        shared -= min(own, float(by_seed.var(ddof=1))) / seeds
    return math.sqrt(max(shared, 0.0) + one)


def bootstrap(values: pd.Series, error: float = 0.0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, with seeds drawn with replacement. Every call draws the same.

    error: as in `interval`; each draw of the seeds has its own draw of it, from the normal distribution.
    """
    random = np.random.default_rng(0)
    drawn = random.integers(len(values), size=(RESAMPLES, len(values)))
    means = values.to_numpy()[drawn].mean(axis=1) + error * random.standard_normal(RESAMPLES)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(p: pd.Series) -> pd.Series:
    """p-values corrected for their number by Holm's step-down method; those that are not a number do not count."""
    ordered = p.dropna().sort_values()
    steps = ordered * np.arange(len(ordered), 0, -1)
    return steps.cummax().clip(upper=1).reindex(p.index)
