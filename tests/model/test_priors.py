"""Terms of synthesis against numbers worked out by hand, brute force, and each other."""

import math

import pytest
import timm
import torch

from dearkd.model import priors
from dearkd.plan.synthesis import terms


def one_pixel(height=3, width=3):
    images = torch.zeros(1, 1, 1, height, width)
    images[..., 1, 1] = 2.0
    return images


def test_total_variation_of_one_bright_pixel():
    # two differences of 2 in each of the four directions
    assert priors.total_variation(one_pixel()).item() == pytest.approx(4 * math.sqrt(2 * 2**2))


def test_total_variation_is_a_norm_over_the_whole_batch():
    image = torch.randn(1, 1, 1, 5, 5)
    both = image.expand(1, 4, 1, 5, 5)
    assert priors.total_variation(both).item() == pytest.approx(2 * priors.total_variation(image).item(), rel=1e-6)


def test_squared_norm_is_the_mean_of_each_image():
    images = torch.stack([torch.full((1, 2, 2), 1.0), torch.full((1, 2, 2), 3.0)])[None]
    assert priors.squared_norm(images).item() == pytest.approx((2 + 6) / 2)


def test_statistics_distance_by_hand():
    x = torch.tensor([[[[0.0, 2.0]]], [[[4.0, 6.0]]]])  # mean 3, biased variance 5
    distance = priors.statistics_distance(x, torch.tensor([0.0]), torch.tensor([1.0]), groups=1)
    assert distance.item() == pytest.approx(3 + 4)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=5)
    with torch.no_grad():
        net.train()(torch.randn(8, 3, 64, 64))  # moves the running statistics off 0 and 1
    return net.eval()


def brute_force_r_bn(net, images, first):
    terms = []

    def keep(layer, inputs):
        x = inputs[0]
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        terms.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())

    handles = [m.register_forward_pre_hook(keep) for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    net(images)
    for handle in handles:
        handle.remove()
    return first * terms[0] + sum(terms[1:])


def test_r_bn_sums_every_layer_of_a_timm_cnn_and_groups_do_not_touch(net):
    images = torch.randn(2, 4, 3, 64, 64)
    with torch.no_grad(), priors.BatchNormPrior(net, first=10.0) as prior:
        net(images.flatten(0, 1))
        together = prior.take(2)
        expected = torch.stack([brute_force_r_bn(net, group, 10.0) for group in images])
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)


def test_r_bn_pairs_layers_with_their_own_statistics_whatever_the_order_of_modules():
    class Crossed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = torch.nn.BatchNorm2d(1), torch.nn.BatchNorm2d(1)
            self.second.running_mean.fill_(5.0)

        def forward(self, x):
            return self.second(self.first(x) + 5.0)

    images = torch.randn(64, 1, 4, 4)
    images = (images - images.mean()) / images.std(correction=0)
    net = Crossed().eval()
    with torch.no_grad(), priors.BatchNormPrior(net) as prior:
        net(images)
        assert prior.take(1).item() < 1e-3


def test_nothing_stays_hooked(net):
    with priors.BatchNormPrior(net):
        pass
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_competition_is_one_where_they_agree_and_small_where_they_do_not():
    sure, other = torch.tensor([[[30.0, 0, 0]]]), torch.tensor([[[0, 30.0, 0]]])
    assert priors.competition(sure, sure).item() == pytest.approx(1.0)
    p, q = torch.tensor([0.99, 0.01, 0.01]), torch.tensor([0.01, 0.99, 0.01])
    m = (p + q) / 2
    js = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    assert priors.competition(sure, other).item() == pytest.approx(1 - js.item(), abs=1e-6)


def test_the_divergence_is_nvlabs_where_they_agree_and_smaller_where_they_do_not():
    """docs/decisions.md: NVlabs' code has the arguments of KL swapped. Far apart, its value is 1.6 and ours 0.6."""

    def both(teacher, student):
        p, q = ((x / 3).softmax(-1).clamp(0.01, 0.99) for x in (teacher, student))
        m = ((p + q) / 2).clamp(0.01, 0.99)
        swapped = ((m * (m / p).log()).sum() + (m * (m / q).log()).sum()) / 2
        return 1 - priors.competition(teacher, student).item(), swapped.item()

    start = torch.tensor([[[1.0, 0.5, 0.0, -0.5]]])
    ours, theirs = both(start, start + torch.tensor([0.3, 0.0, -0.2, 0.1]))
    assert ours == pytest.approx(theirs, rel=0.02) and ours > 1e-4
    ours, theirs = both(torch.tensor([[[30.0, 0, 0]]]), torch.tensor([[[0, 30.0, 0]]]))
    assert (ours, theirs) == pytest.approx((0.64, 1.61), abs=0.02)


CODES = torch.tensor([[[0.0], [1.0], [3.0], [4.5], [10.0]]])
LABELS = torch.tensor([[0, 0, 0, 1, 1]])


def test_easy_positive_is_the_nearest_other_image_of_the_class():
    # class 0: 1, 1, 2; class 1: 5.5, 5.5
    assert priors.easy_positive(priors.distances(CODES), LABELS).item() == pytest.approx(-(1 + 1 + 2 + 5.5 + 5.5) / 5)


def test_triplet_takes_the_farthest_positive_and_the_nearest_negative():
    # hardest positives 3, 2, 3, 5.5, 5.5; nearest of another class 4.5, 3.5, 1.5, 1.5, 7; margin 0.3
    expected = (0 + 0 + 1.8 + 4.3 + 0) / 5
    assert priors.triplet(priors.distances(CODES), LABELS, 0.3).item() == pytest.approx(expected, abs=1e-6)


def test_gradients_push_positives_apart_and_do_not_die_at_equal_codes():
    codes = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [9.0, 9.0], [9.0, 9.0]]], requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 1]])
    priors.easy_positive(priors.distances(codes), labels).sum().backward()
    assert codes.grad[0, 0, 0] > 0 > codes.grad[0, 1, 0]
    assert torch.isfinite(codes.grad).all()


def test_classification_is_cross_entropy_of_each_group():
    logits, labels = torch.randn(2, 3, 4), torch.randint(0, 4, (2, 3))
    expected = [torch.nn.functional.cross_entropy(x, y).item() for x, y in zip(logits, labels, strict=True)]
    assert priors.classification(logits, labels).tolist() == pytest.approx(expected)


def test_no_term_of_the_paper_swamps_the_others_at_the_start(net):
    """Eq. 11 on raw features would: its gradient has norm 50, and nothing bounds it."""
    from dearkd.jobs.inversion import Inversion, classes_of
    from dearkd.model import teachers
    from dearkd.plan.stage import Data, Phase, Source, Synthesis, Teacher

    recipe = Synthesis(batch_classes=2, per_class=4, images=8, phases=(Phase(size=64, iterations=1, lr=0.1),))
    data = Data(kind="folder", classes=5, image_size=64)
    source = Source(
        name="df_dearkd",
        terms=terms(recipe, "df_dearkd"),
        recipe=recipe,
        data=data,
        teacher_name="main",
        teacher=Teacher(model="resnet18", top1=0.0),
    )
    labels = torch.tensor([classes_of(0, recipe, range(5), 0)])
    inversion = Inversion(source, 0, [0], labels, teachers.TeacherNetwork(net))
    inversion.advance()
    assert set(inversion.first) == {"ce", "tv", "l2", "r_bn", "easy_positive", "triplet"}
    assert max(abs(v[0]) for v in inversion.first.values()) < 100 * inversion.first["ce"][0]


def test_statistics_and_their_gradient_do_not_depend_on_the_memory_format():
    torch.manual_seed(0)
    mean, variance = torch.randn(3), torch.rand(3)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        x = (torch.randn(4, 3, 5, 5).double().to(memory_format=layout)).requires_grad_()
        value = priors.statistics_distance(x, mean, variance, 2)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        found.append((value, gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: priors._Moments.apply(x, 2), images)
    mean, variance = priors._Moments.apply(images, 2)
    alone = images.unflatten(0, (2, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close((variance, mean), torch.var_mean(alone, dim=2, correction=0))
