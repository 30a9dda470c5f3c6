"""The bias of Eq. 2: its values, its first centres, its coordinates."""

import itertools
import math

import pytest
import torch

from dearkd.model.position import QuadraticBias, head_centres
from dearkd.plan.stage import Rpe


def test_bias_is_equation_2():
    bias = QuadraticBias(1, 16, (2, 3), 1, Rpe())
    with torch.no_grad():
        bias.alpha.fill_(0.5)
        bias.delta.copy_(torch.tensor([[1.0, -2.0]]))
    dense = bias.dense()[0]
    for (i, (r, c)), (j, (s, d)) in itertools.product(enumerate(itertools.product(range(2), range(3))), repeat=2):
        shift = (s - r, d - c)
        expected = -0.5 * (shift[0] ** 2 + shift[1] ** 2 - 2 * (1.0 * shift[0] - 2.0 * shift[1]))
        assert dense[1 + i, 1 + j].item() == pytest.approx(expected, abs=1e-6)


def test_class_token_has_no_position():
    dense = QuadraticBias(12, 16, (14, 14), 1, Rpe()).dense()
    assert not dense[:, 0].any() and not dense[:, :, 0].any()
    assert dense[:, 1:, 1:].abs().min() > 0 or dense[:, 1:, 1:].any()


def test_forms_differ_by_a_constant_between_patches():
    literal, centred = (QuadraticBias(12, 16, (14, 14), 1, Rpe(form=form)) for form in ("literal", "centred"))
    difference = (literal.dense() - centred.dense())[:, 1:, 1:]
    expected = literal.alpha * literal.delta.square().sum(1)
    assert torch.allclose(difference, expected[:, None, None].expand_as(difference), atol=1e-4)


def test_convit_centres_for_twelve_heads_are_a_square_and_three_global_heads():
    bias = QuadraticBias(12, 16, (14, 14), 1, Rpe())
    assert sorted(map(tuple, bias.delta[:9].tolist())) == sorted(itertools.product((-1.0, 0.0, 1.0), repeat=2))
    assert not bias.delta[9:].any() and not bias.alpha[9:].any() and (bias.alpha[:9] == 1).all()


def test_centres_of_sixteen_heads_and_of_a_rectangle():
    assert sorted(set(head_centres(16, "convit")[:, 0].tolist())) == [-1.5, -0.5, 0.5, 1.5]
    assert sorted(map(tuple, head_centres(12, "rect").tolist())) == sorted(
        itertools.product((-1.0, 0.0, 1.0), (-1.5, -0.5, 0.5, 1.5))
    )
    assert not head_centres(12, "zero").any()


def test_initial_attention_distance():
    """2.77 patches for 9 local and 3 global heads, 7.281 for uniform attention, with uniform content on 14 x 14."""
    bias = QuadraticBias(12, 16, (14, 14), 0, Rpe())
    positions = torch.cartesian_prod(torch.arange(14.0), torch.arange(14.0))
    distance = (bias.dense().softmax(-1) * torch.cdist(positions, positions)).sum(-1).mean(1)
    assert distance.mean().item() == pytest.approx(2.77, abs=0.01)
    assert distance[:9].mean().item() == pytest.approx(1.26, abs=0.01)
    assert distance[9:].mean().item() == pytest.approx(7.281, abs=0.001)


def test_free_parameters_start_at_the_same_bias():
    a, b = QuadraticBias(9, 4, (4, 4), 1, Rpe()), QuadraticBias(9, 4, (4, 4), 1, Rpe(param="free"))
    assert torch.allclose(a.dense(), b.dense(), atol=1e-6)


def test_rescaled_coordinates_keep_the_bias_across_a_finer_grid():
    bias = QuadraticBias(1, 4, (2, 2), 0, Rpe(coord="rescaled", init="zero"))
    corner = bias.dense()[0, 0, 3].item()
    bias.set_grid((3, 3))
    assert bias.dense()[0, 0, 8].item() == pytest.approx(corner * (2 * 2 / 3 / 1) ** 2, rel=1e-5)
    assert math.isclose(bias.positions.max().item(), 2 / 3, rel_tol=1e-6)
