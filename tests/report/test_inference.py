"""Student's interval, the bootstrap and Holm's correction against numbers worked out by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dearkd.report import inference
from dearkd.report.claims import judge, language
from dearkd.report.claims.language import Reference


def test_students_interval_and_p_by_hand():
    """1, 2, 3: mean 2, sd 1, error 1/√3; t = 3.4641 with 2 degrees of freedom, whose two-sided p is
    1 - t / √(2 + t²) = 1 - 3.4641 / √14 = 0.074180."""
    found = inference.interval(pd.Series([1.0, 2.0, 3.0]))
    assert (found.mean, found.half, found.p) == pytest.approx((2, 2.484138, 0.0741799), abs=1e-6)
    assert found.p == pytest.approx(stats.ttest_1samp([1, 2, 3], 0).pvalue)


def test_the_shared_error_is_added_as_a_square():
    """1, 2, 3 with an error of 0.5: half is √(2.484138² + (1.959964 / 2)²); p is where the interval ends at 0."""
    found = inference.interval(pd.Series([1.0, 2.0, 3.0]), 0.5)
    assert found.half == pytest.approx(2.670450, abs=1e-5)
    ends = math.hypot(stats.t.isf(found.p / 2, 2) / math.sqrt(3), stats.norm.isf(found.p / 2) * 0.5)
    assert ends == pytest.approx(2, abs=1e-9)


def test_seeds_that_agree_leave_the_error_of_their_test_images():
    found = inference.interval(pd.Series([2.0, 2.0]), 0.5)
    assert (found.half, found.p) == pytest.approx((0.979982, 2 * stats.norm.sf(4)))
    assert inference.interval(pd.Series([0.1 + 0.2, 0.3]), 0.5).half == pytest.approx(0.979982), (
        "equal but for rounding"
    )


@pytest.mark.parametrize("values", [[2.0, 2.0], [0.0, 0.0, 0.0], [0.1 + 0.2, 0.3]])
def test_seeds_that_agree_on_a_number_of_unknown_error_tell_nothing(values):
    found = inference.interval(pd.Series(values))
    assert found.half == math.inf and found.p == 1


MARGINS = st.integers(1, 6).flatmap(
    lambda images: st.lists(
        st.lists(st.sampled_from([-100.0, 0.0, 100.0]), min_size=images, max_size=images), min_size=2, max_size=4
    )
)


@given(MARGINS, st.floats(-50, 50))
def test_no_interval_has_zero_width_or_less_than_an_image(margins, threshold):
    """Whatever the answers are, equal ones too, and whatever threshold the margins are taken from."""
    margins = np.array(margins) - threshold
    error = inference.images_error(margins)
    found = inference.interval(pd.Series(margins.mean(axis=1)), error)
    assert found.half >= 1.95 * 100 / margins.shape[1] and 0 <= found.p <= 1
    assert (found.p < 0.05) == (abs(found.mean) > found.half) or abs(found.mean) == pytest.approx(found.half)
    low, high = inference.bootstrap(pd.Series(margins.mean(axis=1)), error)
    assert low < high


def test_the_error_of_the_test_images_by_hand():
    """One of four: variance of the means 2500, over 4 images 625, and (100 / 4)² more for one image: √1250.

    Seeds that agree do not make it smaller. Seeds that share nothing leave one image.
    """
    one = [100.0, 0.0, 0.0, 0.0]
    assert [inference.images_error(np.array([one] * n)) for n in (1, 2, 8)] == pytest.approx([math.sqrt(1250)] * 3)
    assert inference.images_error(np.array([[100.0, 0.0], [0.0, 100.0]])) == 50
    assert inference.images_error(np.zeros((3, 50))) == 2
    assert inference.images_error(np.array([[100.0], [0.0]])) == 100


def trial(random, seeds, images, spread, own):
    """Margins of a method over another whose true margin is known: normal latent scores with an effect of the image for
    both methods, one for each method and image, one for each method and seed, and one for every answer."""
    thresholds, found = {1: 2.0, -1: 1.6}, 0
    both = math.sqrt(0.6) * random.standard_normal(images)
    for sign, threshold in thresholds.items():
        seed = spread * random.standard_normal((seeds, 1))
        answer = math.sqrt(0.4 - own) * random.standard_normal((seeds, images))
        found += sign * 100.0 * (both + math.sqrt(own) * random.standard_normal(images) + answer < threshold + seed)
    true = sum(sign * 100 * stats.norm.cdf(t / math.hypot(1, spread)) for sign, t in thresholds.items())
    return found, true


@pytest.mark.parametrize("seeds", [2, 3, 8])
@pytest.mark.parametrize("spread, own", [(0.0, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_the_interval_covers_a_known_truth(seeds, spread, own):
    """In 95 % of 500 trials or more; 93 % are two standard errors of the trials below that."""
    random = np.random.default_rng(seeds)
    covered = 0
    for _ in range(500):
        margins, true = trial(random, seeds, 400, spread, own)
        found = inference.interval(pd.Series(margins.mean(axis=1)), inference.images_error(margins))
        covered += abs(found.mean - true) <= found.half
    assert covered >= 465


def test_students_t_alone_does_not_cover_it():
    """The fault that the shared error mends: eight seeds agree on the images that a method is better at."""
    random = np.random.default_rng(0)
    trials = [trial(random, 8, 400, 0.0, 0.35) for _ in range(300)]
    alone = [inference.interval(pd.Series(margins.mean(axis=1))) for margins, _ in trials]
    assert sum(abs(one.mean - true) <= one.half for one, (_, true) in zip(alone, trials, strict=True)) < 240


def test_one_seed_has_no_interval():
    found = inference.interval(pd.Series([4.0]))
    assert found.mean == 4 and math.isnan(found.half) and math.isnan(found.p)


def test_the_bootstrap_is_the_distribution_of_means_with_replacement():
    """Of 0 and 1: means 0, 1/2, 1 with 1/4, 1/2, 1/4, so the interval is all of it. Of five: against all 5^5 draws."""
    assert inference.bootstrap(pd.Series([0.0, 1.0])) == (0, 1)
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    every = np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=5)])
    found = inference.bootstrap(pd.Series(values))
    assert found == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=0.25)
    assert found == inference.bootstrap(pd.Series(values)), "the same draws every time"


def test_the_bootstrap_draws_the_shared_error_too():
    low, high = inference.bootstrap(pd.Series([2.0, 2.0]), 0.5)
    assert (low, high) == pytest.approx((2 - 0.98, 2 + 0.98), abs=0.05)


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, of which none may fall below the last."""
    p = pd.Series([0.04, math.nan, 0.01, 0.03, 0.02], index=list("abcde"))
    found = inference.holm(p)
    assert found.drop("b").to_dict() == pytest.approx({"a": 0.06, "c": 0.04, "d": 0.06, "e": 0.06})
    assert math.isnan(found["b"]) and list(found.index) == list("abcde")
    assert inference.holm(pd.Series([0.6, 0.7])).tolist() == [1, 1]


@given(st.lists(st.integers(0, 1000).map(lambda k: k / 1000), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_does(p):
    """The procedure as Holm wrote it: from the smallest on, reject while p(i) is below alpha / (n - i)."""
    for alpha in (0.05, 0.2):
        rejected = set()
        for i, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
            if p[k] * (len(p) - i) >= alpha:
                break
            rejected.add(k)
        corrected = inference.holm(pd.Series(p))
        assert {k for k in range(len(p)) if corrected[k] < alpha} == rejected
        assert (corrected >= p).all()


# ---------------------------------------------------------------------------------------- p-values of claims

A, B, C, D = (Reference("table1", "", row) for row in "ABCD")


def p_of(text, numbers):
    return judge.judge(language.read(text), numbers).p


def seeds(*values):
    return pd.Series(values, index=range(len(values)), dtype=float)


SURE, HALF, NONE = seeds(10, 11, 12), seeds(1, 2, 3), seeds(-1, 0, 1)
"""Margins with means 11, 2 and 0, and errors 1/√3: t is 11√3, 2√3 and 0."""
P_SURE, P_HALF = (1 - t / math.sqrt(2 + t * t) for t in (11 * math.sqrt(3), 2 * math.sqrt(3)))


def test_one_comparison_has_the_p_of_its_t_test():
    assert p_of("table1['A'] > 0", {A: HALF}) == pytest.approx(P_HALF)
    assert p_of("table1['A'] < 0", {A: HALF}) == pytest.approx(P_HALF), "it fails as surely as the other one holds"
    assert p_of("table1['A'] > 0", {A: NONE}) == pytest.approx(1)


def test_all_hold_no_more_surely_than_the_least_sure():
    assert p_of("table1['A'] > 0 and table1['B'] > 0", {A: SURE, B: HALF}) == pytest.approx(P_HALF)


def test_one_of_several_fails_as_surely_as_the_surest_times_their_number():
    found = p_of("table1['A'] > 0 and table1['B'] < 0 and table1['C'] > 0", {A: HALF, B: SURE, C: NONE})
    assert found == pytest.approx(3 * P_SURE)


def test_at_least_k_of_n():
    """In x it holds surely, in y less so, in z not: two of three with 2 x the second, three with 1 x the third."""
    numbers = {Reference("table4", "", "A", column): v for column, v in {"x": SURE, "y": HALF, "z": NONE}.items()}
    text = "at_least({}, table4['A', each] > 0)"
    assert p_of(text.format(1), numbers) == pytest.approx(3 * P_SURE)
    assert p_of(text.format(2), numbers) == pytest.approx(2 * P_HALF)
    assert p_of(text.format(3), numbers) == pytest.approx(1)
    fails = {cell: -value for cell, value in numbers.items()}
    assert p_of(text.format(1), fails) == pytest.approx(1), "that none holds is no surer than the least sure"
    assert p_of(text.format(2), fails) == pytest.approx(2 * P_HALF)
    assert p_of(text.format(3), fails) == pytest.approx(3 * P_SURE)


def test_numbers_without_seeds_leave_nothing_to_chance_and_one_seed_says_nothing():
    assert p_of("table1['A'] > 0 and table1['B'] > 0", {A: HALF, B: 5.0}) == pytest.approx(P_HALF)
    assert p_of("table1['A'] > 0 and table1['B'] < 0", {A: HALF, B: 5.0}) == 0
    assert math.isnan(p_of("table1['B'] > 0", {B: 5.0}))
    assert math.isnan(p_of("table1['A'] > 0 and table1['B'] > 0", {A: HALF, B: seeds(3)}))
    assert math.isnan(p_of("table1['A'] > 0 and table1['D'] > 0", {A: HALF}))


@given(st.lists(st.lists(st.integers(-4, 6), min_size=3, max_size=5), min_size=1, max_size=4))
def test_a_claim_that_holds_or_fails_has_a_small_p(rows):
    """Alone, a verdict of an interval and a p-value below 0.05 are one thing; in a conjunction failing costs more."""
    numbers = {Reference("table1", "", "ABCD"[i]): seeds(*row) for i, row in enumerate(rows)}
    one = judge.judge(language.read(" and ".join(f"table1['{'ABCD'[i]}'] > 0" for i in range(len(rows)))), numbers)
    if one.verdict == "holds":
        assert one.p < 0.05
    if one.p < 0.05:
        assert one.verdict in ("holds", "fails")
    if len(rows) == 1:
        assert (one.p < 0.05) == (one.verdict != "within noise")
