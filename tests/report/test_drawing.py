"""Diagrams as data: nothing leaves its canvas, no box covers another, an arrow ends where its line says."""

import itertools

import matplotlib.pyplot as plt
import pytest

from dearkd.plan import methods, verify
from dearkd.plan.experiments import load
from dearkd.plan.synthesis import SYNTHESIS
from dearkd.report import diagrams
from dearkd.report.drawing import Box, Line, Text, arrow, chain, draw


def laid_out(ax):
    """(x, y, right, top) of each box on the axes, all of them inside."""
    boxes = [patch.get_bbox().extents for patch in ax.patches]
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert boxes and all(left <= b[0] < b[2] <= right and low <= b[1] < b[3] <= high for b in boxes)
    return boxes


@pytest.mark.parametrize("scale", ["digits", "imagenet", "smoke"])
@pytest.mark.parametrize("name", SYNTHESIS)
def test_no_box_of_figure_5_covers_another_or_leaves_the_canvas(scale, name):
    ax = diagrams.data_free_pipeline(plt.subplots()[1], methods.source(load(scale).scale, name))
    for a, b in itertools.combinations(laid_out(ax), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("figure", [diagrams.pipeline, diagrams.aligner])
def test_no_box_of_figures_2_and_3_covers_another_or_leaves_the_canvas(figure):
    plan = load("digits")
    ax = figure(plt.subplots()[1], plan.run("dearkd-Ti"), verify.teacher(plan, "main"))
    for a, b in itertools.combinations(laid_out(ax), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_parts_are_drawn_where_they_say():
    first, second = Box(0, 0, 4, 2, "a", "#ffffff"), Box(6, 1, 4, 2, "b", "#ffffff")
    assert (first.right(), first.top(0.25), second.left(0), second.bottom()) == ((4, 1), (1, 2), (6, 1), (8, 1))
    (between,) = chain((first, second))
    assert between == arrow((4, 1), (6, 2))
    corner = Line(((1, 2), (1, 5), (8, 5), (8, 3)))
    ax = draw(plt.subplots()[1], 10, 6, [first, second, between, corner, Text(5, 5.5, "over", 6)])
    assert len(laid_out(ax)) == 2
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[1, 2], [1, 5], [8, 5]]]
    heads = [(text.xyann, text.xy) for text in ax.texts if hasattr(text, "arrow_patch") and text.arrow_patch]
    assert heads == [((4, 1), (6, 2)), ((8, 5), (8, 3))]
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["a", "b", "over"]
