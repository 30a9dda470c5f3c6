"""Pairs of images, LPIPS against the lpips package itself, files of trunk weights, and the summary by hand."""

import os
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from dearkd.diversity import TRUNKS, Lpips, copy_trunk, distances, pairs, summary
from dearkd.scale import Diversity
from dearkd.schema import InputError

SPEC = Diversity(trunk="random", size=40)
LABELS = np.repeat([3, 0, 7], [9, 12, 8])


def noise(n, channels=3, side=40, seed=0):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def metric():
    return Lpips(SPEC)


@pytest.fixture(scope="module")
def network():
    """A torchvision AlexNet with weights that neither `random` nor the hub has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return models.alexnet(weights=None).eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    return path


# ---------------------------------------------------------------------------------------------- pairs


def test_pairs_are_disjoint_and_within_a_class_in_order():
    found = pairs(LABELS, 4, 0)
    assert found.shape == (12, 2) and len(np.unique(found)) == 24
    assert LABELS[found].tolist() == [[0, 0]] * 4 + [[3, 3]] * 4 + [[7, 7]] * 4


def test_pairs_depend_on_the_key_and_the_class_alone():
    found = pairs(LABELS, 4, 0)
    assert np.array_equal(found, pairs(LABELS, 4, 0)) and not np.array_equal(found, pairs(LABELS, 4, 1))
    assert np.array_equal(pairs(LABELS[:21], 4, 0), found[:8])  # class 7 left out
    first, second = pairs(np.repeat([0, 1], 20), 4, 0).reshape(2, 4, 2)
    assert not np.array_equal(first, second - 20)


def test_every_image_can_be_paired_with_every_other():
    seen = {tuple(sorted(pair)) for seed in range(60) for pair in pairs(np.zeros(4, dtype=int), 2, seed).tolist()}
    assert seen == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


def test_a_small_class_gets_distinct_pairs():
    labels = np.array([1, 0, 1, 1, 1])
    with pytest.raises(InputError, match="class 0 has 1 images"):
        pairs(labels, 6, 0)
    found = pairs(labels[[0, 2, 3, 4]], 6, 0)
    assert sorted(tuple(sorted(p)) for p in found.tolist()) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    with pytest.raises(InputError, match=r"class 1 has 4 images, which make 6 pairs, too few for diversity.pairs: 7"):
        pairs(labels[[0, 2, 3, 4]], 7, 0)


# ---------------------------------------------------------------------------------------------- distances


def package(first, second, normalize):
    """The lpips package's own distance, with the trunk that `random` stands for drawn afresh."""
    from lpips import LPIPS

    from dearkd.keys import key_of

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(key_of("lpips trunk", "alex"))
        return LPIPS(net="alex", pnet_rand=True, verbose=False)(first, second, normalize=normalize).flatten().numpy()


def test_distances_are_those_of_the_lpips_package(metric):
    images, chosen = noise(6) ** 2, np.array([[0, 5], [1, 2], [3, 3]])
    first, second = images[chosen[:, 0]], images[chosen[:, 1]]
    found = distances(metric, images, chosen)
    assert found[0] > 1e-4 and found[2] == 0
    assert found == pytest.approx(package(first, second, True), abs=1e-6, rel=1e-5)
    assert found == pytest.approx(package(2 * first - 1, 2 * second - 1, False), abs=1e-6, rel=1e-5)
    assert metric(2 * first - 1, 2 * second - 1).numpy() == pytest.approx(found, abs=1e-6, rel=1e-5)


def test_distances_are_symmetric_and_independent_of_the_batch(metric):
    images, chosen = noise(8), np.array([[0, 1], [2, 3], [4, 5], [6, 7], [1, 6]])
    whole = distances(metric, images, chosen)
    assert distances(metric, images, chosen[:, ::-1].copy()) == pytest.approx(whole, rel=1e-5)
    assert distances(metric, images, chosen, batch=2) == pytest.approx(whole, rel=1e-5)
    assert len(set(whole.round(9))) == 5


def test_grey_images_count_as_rgb_of_equal_channels(metric):
    grey, chosen = noise(2, channels=1), np.array([[0, 1]])
    assert distances(metric, grey, chosen) == pytest.approx(distances(metric, grey.repeat(1, 3, 1, 1), chosen))


def test_images_are_resized_with_antialiasing(metric):
    """Black, white, white, black at four times the size is grey on average, but white where it is merely sampled."""
    stripes = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(40).expand(1, 3, 160, 160)
    images, chosen = torch.cat([stripes, torch.full_like(stripes, 0.5)]), np.array([[0, 1]])
    assert distances(metric, images, chosen)[0] < 0.01 * distances(metric, images[..., :40, :40], chosen)[0]


def test_blur_takes_noise_away_but_leaves_large_shapes(metric):
    chosen = np.array([[0, 1], [2, 3], [4, 5]])
    sharp = distances(metric, noise(6), chosen)
    assert (distances(metric, noise(6), chosen, blurred=True) < 0.8 * sharp).all()
    black_and_white = torch.stack([torch.zeros(3, 40, 40), torch.ones(3, 40, 40)])
    flat = [distances(metric, black_and_white, chosen[:1], blurred=b)[0] for b in (False, True)]
    assert flat[0] > 0 and flat[1] == pytest.approx(flat[0], rel=1e-4)


def test_blur_has_the_standard_deviation_of_the_scale(metric):
    """A point becomes a Gaussian of variance blur^2: compare with one written down."""
    point, gaussian = torch.zeros(2, 3, 41, 41)
    point[:, 20, 20] = 1.0
    x = torch.arange(41.0) - 20
    line = torch.exp(-(x**2) / (2 * SPEC.blur**2)) * (x.abs() <= 3 * SPEC.blur)
    gaussian[:] = torch.outer(line, line) / line.sum() ** 2
    blurred = Lpips(Diversity(trunk="random", size=41))
    plain = blurred(2 * gaussian[None] - 1, -torch.ones(1, 3, 41, 41)).item()
    images = torch.stack([point, torch.zeros(3, 41, 41)])
    assert plain > 0
    assert distances(blurred, images, np.array([[0, 1]]), blurred=True)[0] == pytest.approx(plain, rel=1e-4)


def test_lpips_is_frozen_quiet_and_leaves_the_global_generator_alone(metric, recwarn, capsys):
    torch.rand(1)  # off the state in which drawing a trunk would leave it
    before = torch.get_rng_state()
    again = Lpips(SPEC)
    assert torch.equal(torch.get_rng_state(), before)
    assert not recwarn.list and capsys.readouterr() == ("", "")
    assert again.trunk_sha256 == metric.trunk_sha256
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in again.parameters())
    assert not any(m.training for m in again.train().modules())


# ---------------------------------------------------------------------------------------------- trunks


class Harmful:
    """Unpickled without care it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def spoilt(weights, kind, folder):
    path = folder / "trunk.pth"
    if kind == "truncated":
        path.write_bytes(weights.read_bytes()[:100_000])
    elif kind == "other":
        torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    elif kind == "code":
        path.write_bytes(pickle.dumps({"features.0.weight": Harmful(folder / "harm")}, protocol=2))
    return path


@pytest.mark.parametrize(
    "kind, sentence",
    [
        ("missing", "weights are missing"),
        ("truncated", "not a whole weights file"),
        ("other", "weights of another network"),
        ("code", "refused, it holds more than tensors"),
    ],
)
def test_a_wrong_trunk_file_is_named(kind, sentence, weights, tmp_path):
    path = spoilt(weights, kind, tmp_path)
    with pytest.raises(InputError, match=re.escape(f"diversity.trunk: {path}: {sentence}")):
        Lpips(Diversity(trunk=str(path)))
    assert not (tmp_path / "harm").exists()


def relus(network, images, after):
    """Features of a torchvision network after the layers `after`."""
    found = []
    for i, layer in enumerate(network.features):
        images = layer(images)
        if i in after:
            found.append(images.clone())
    return found


def test_a_trunk_from_a_file_gives_the_features_of_torchvisions_network(network, weights, metric, tmp_path):
    save_file(network.state_dict(), tmp_path / "trunk.safetensors")
    loaded = [Lpips(Diversity(trunk=str(p), size=40)) for p in (weights, tmp_path / "trunk.safetensors")]
    assert loaded[0].trunk_sha256 == loaded[1].trunk_sha256 != metric.trunk_sha256
    images = noise(2, side=64)
    with torch.no_grad():
        for found, expected in zip(loaded[0].net.net(images), relus(network, images, {1, 4, 7, 9, 11}), strict=True):
            assert expected.std() > 0 and torch.equal(found, expected)


def test_copy_trunk_maps_vgg_too():
    network, lpips = models.vgg16(weights=None), Lpips(Diversity(net="vgg", trunk="random"))
    copy_trunk(network.features, lpips.net.net)
    images = noise(1, side=32)
    with torch.no_grad():
        for found, expected in zip(lpips.net.net(images), relus(network, images, {3, 8, 15, 22, 29}), strict=True):
            assert expected.std() > 0 and torch.equal(found, expected)


def test_the_heads_are_those_of_the_package(weights):
    """A trunk does not touch them: the first weights of alex's first head, read off weights/v0.1/alex.pth."""
    head = Lpips(Diversity(trunk=str(weights))).net.lin0.model[1].weight.flatten()
    assert len(head) == 64 and (head >= 0).all() and head.sum().item() == pytest.approx(2.3495, abs=1e-4)


def test_without_a_trunk_the_hubs_file_is_used(weights, network, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(weights.parents[2]))
    trunk = Lpips(Diversity()).net.net
    assert torch.equal(trunk.slice1[0].weight, network.features[0].weight)


@pytest.mark.parametrize("net, file", [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")])
def test_trunks_come_from_torchvisions_own_place(net, file):
    assert TRUNKS[net][1] == f"https://download.pytorch.org/models/{file}"


def test_without_internet_the_error_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(InputError) as error:
        Lpips(Diversity())
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth cannot be fetched" in str(error.value)
    assert "set `diversity.trunk: /path/to/alexnet-owt-7be5be79.pth`" in str(error.value)


# ---------------------------------------------------------------------------------------------- summary


def test_summary_by_hand():
    """Mean 10 / 4; squared deviations 2.25 + 0.25 + 0.25 + 2.25 over 3, and the root of that over root 4."""
    found = summary(np.array([1.0, 2.0, 3.0, 4.0]), np.array([5, 0, 5, 0]))
    assert found == {"mean": 2.5, "se": pytest.approx((5 / 3) ** 0.5 / 2), "n": 4, "per_class": {0: 3.0, 5: 2.0}}
