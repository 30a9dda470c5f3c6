"""Sums on the device, and the first term that was not finite, by hand."""

import math

import pytest
import torch

from dearkd.train.meters import Meters


def terms(loss, ce):
    return {"loss": torch.tensor(loss), "ce": torch.tensor(ce)}


def test_sums_are_of_shares_and_start_anew():
    meters = Meters(("loss", "ce"), torch.device("cpu"))
    assert meters.sums() == {}
    for _ in range(2):
        meters.add(terms(3.0, 1.0), share=2)
    assert meters.sums() == {"loss": 3.0, "ce": 1.0}
    meters.start(7, {"loss": 0.5})
    assert meters.sums() == {"loss": 0.5, "ce": 0.0} and int(meters.step) == 7
    meters.start(8)
    assert meters.sums() == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_bad_term_is_named_however_late_one_looks(value):
    meters = Meters(("loss", "ce"), torch.device("cpu"))
    meters.start(5)
    for ce in (1.0, value, 1.0, math.nan):
        meters.add(terms(1.0, ce), share=1)
        meters.step += 1
    step, name, found = meters.bad()
    assert (step, name) == (6, "ce") and (found == value or math.isnan(value))


def test_a_total_that_overflows_alone_is_no_bad_term():
    """Each term is looked at, not their sum."""
    meters = Meters(("loss", "ce"), torch.device("cpu"))
    meters.add(terms(3e38, 1.0), share=1)
    meters.add(terms(3e38, 1.0), share=1)
    assert meters.bad() is None
