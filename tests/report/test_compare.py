"""Results made again beside the committed ones: the same bits, a spread by Student's t, and no other recipe."""

import pandas as pd
import pytest

from dearkd.__main__ import main
from dearkd.errors import InputError
from dearkd.plan.experiments import load
from dearkd.report import compare


@pytest.mark.parametrize(
    "top1, others, verdict",
    [
        # mean 92, sd 2, t of 2 degrees of freedom 4.3027: 92 ± 4.3027 * 2 * sqrt(4 / 3) = 92 ± 9.937
        (101.9, [90, 92, 94], compare.WITHIN),
        (102.0, [90, 92, 94], compare.OUTSIDE),
        (82.1, [90, 92, 94], compare.WITHIN),
        (82.0, [90, 92, 94], compare.OUTSIDE),
        (90.0, [90, 90], compare.WITHIN),
        (90.1, [90, 90], compare.OUTSIDE),
        (90.0, [90], compare.ALONE),
        (90.0, [], compare.ALONE),
    ],
)
def test_a_result_is_judged_by_the_interval_of_one_more_seed(top1, others, verdict):
    assert compare.judge(top1, pd.Series(others, dtype=float)) == verdict


def test_the_same_weights_are_the_same_bits_and_other_recipes_are_not_compared(project, capsys):
    assert main(["compare", "--scale", "smoke", "--to", "smoke"]) == 2
    assert "this is the scale itself" in capsys.readouterr().err
    said = compare.write(load("smoke"), load("smoke"))
    assert said.startswith("1 results of `smoke` beside the committed `smoke`: 1 same bits.")
    assert "| dearkd-Ti | 0 |" in said and (project / "results/smoke/comparison.md").read_text() == said
    with pytest.raises(InputError, match="no run of smoke is evaluated here and in digits by the same recipe"):
        compare.frame(load("smoke"), load("digits"))
