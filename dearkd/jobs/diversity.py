"""The diversity of images: LPIPS between pairs of a class (Table 6, Zhang et al. 2018)."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from lpips import LPIPS
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur, resize

from dearkd.errors import InputError
from dearkd.keys import key_of, numpy_generator
from dearkd.model import lpips_trunks
from dearkd.model.weights import load_weights, weights_sha256
from dearkd.places import home
from dearkd.plan.scale import Diversity

INTERPOLATION = "bilinear, antialiased"
"""How images are resized to the size of the scale."""


def pairs(labels: Int[np.ndarray, " n"], per_class: int, *key: object) -> Int[np.ndarray, "pairs 2"]:
    """Indices of `per_class` random pairs of different images of each class, class by class.

    Pairs are disjoint where a class has 2 per_class images, and distinct otherwise. The draw of a class depends on
    `key` and the class alone. Raises InputError naming a class that has too few images for distinct pairs.
    """
    chosen = [np.empty((0, 2), dtype=np.int64)]
    for label in np.unique(labels):
        random = numpy_generator(*key, "lpips pairs", label)
        members = np.flatnonzero(labels == label)
        if len(members) >= 2 * per_class:
            chosen.append(random.permutation(members)[: 2 * per_class].reshape(-1, 2))
            continue
        every = np.stack(np.triu_indices(len(members), 1), axis=1)
        if len(every) < per_class:
            raise InputError(
                f"class {label} has {len(members)} images, which make {len(every)} pairs, too few for "
                f"diversity.pairs: {per_class}; lower it"
            )
        chosen.append(members[random.choice(every, per_class, replace=False)])
    return np.concatenate(chosen)


class Lpips(nn.Module):
    """LPIPS version 0.1 as the `lpips` package computes it: frozen, in fp32, always in evaluation mode.

    The heads are those of the package. `spec.trunk` names the trunk. If it is empty, the trunk is the one with which
    the heads were trained (`lpips_trunks`). If it is a file, the trunk is from torchvision's network in the file. If it
    is `random`, the trunk is torchvision's initialisation from the key ("lpips trunk", net).
    net: the network, if not `spec.net`. trunk_sha256: attribute, over names and values of the trunk's parameters.
    Raises InputError when the file is missing, damaged, has more than tensors or another network, or when the trunk
    cannot be fetched.
    """

    def __init__(self, spec: Diversity, net: str = "") -> None:
        super().__init__()
        self.spec = spec
        net = net or spec.net
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # lpips names an argument that torchvision has renamed
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            torch.default_generator.manual_seed(key_of("lpips trunk", net))
            # never pnet_rand=False: lpips would fetch the trunk itself, unchecked
            self.net = LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
            if spec.trunk != "random":
                copy_trunk(_features(spec.trunk, net), self.net.net)
        self.float().eval().requires_grad_(False)
        self.trunk_sha256 = weights_sha256(self.net.net)

    def train(self, mode: bool = True) -> "Lpips":
        """Stay in evaluation mode, because the heads have dropout."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, first: Float[Tensor, "batch 3 height width"], second: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """Distance between images in [-1, 1], without a unit; 0 for equal images."""
        return self.net(first, second).flatten()


def copy_trunk(features: nn.Sequential, trunk: nn.Module) -> None:
    """Copy a torchvision network's `features` into lpips' trunk, whose slices keep the layers' numbers as names."""
    for part in trunk.children():
        for index, layer in part.named_children():
            layer.load_state_dict(features[int(index)].state_dict())


def _features(file: str, net: str) -> nn.Sequential:
    """The trained layers of a net: from a file with the whole network's state dict, or from the package."""
    if not file:
        return lpips_trunks.features(net)
    whole = lpips_trunks.TRUNKS[net].network(weights=None)
    try:
        load_weights(whole, Path(home(file)))
    except InputError as error:
        raise InputError(f"diversity.trunk: {error}") from None
    return whole.features


def distances(
    lpips: Lpips,
    images: Float[Tensor, "n channels height width"],
    pairs: Int[np.ndarray, "pairs 2"],
    batch: int = 16,
    device: torch.device = torch.device("cpu"),
    blurred: bool = False,
) -> Float[np.ndarray, " pairs"]:
    """LPIPS of each pair of images, `batch` pairs at a time on `device`, to which `lpips` is moved.

    images: RGB or grey in [0, 1], resized to `size` pixels a side batch by batch. blurred: after a Gaussian blur of
    `blur` pixels at that size, which removes noise.
    """
    lpips.to(device)
    found = [torch.empty(0)]
    for chosen in torch.from_numpy(pairs).split(batch):
        first, second = (_prepared(images[side].to(device), lpips.spec, blurred) for side in chosen.unbind(1))
        found.append(lpips(first, second).cpu())
    return torch.cat(found).double().numpy()


def _prepared(
    images: Float[Tensor, "batch channels height width"], spec: Diversity, blurred: bool
) -> Float[Tensor, "batch 3 size size"]:
    """Images in [0, 1] as the input of LPIPS: RGB in [-1, 1], `size` pixels a side."""
    images = resize(images.float(), [spec.size, spec.size], antialias=True)
    if blurred and spec.blur > 0:
        images = _blurred(images, spec.blur)
    return 2 * images.expand(-1, 3, -1, -1) - 1


def controls(
    images: Float[Tensor, "n channels height width"], spec: Diversity, *key: object
) -> dict[str, Float[Tensor, "n channels height width"]]:
    """Images in [0, 1] without details (`blurred`) and with noise added (`noisy`). The noise depends on `key` alone.

    Their LPIPS shows how the measure responds to blur and noise.
    """
    noise = torch.from_numpy(numpy_generator(*key, "lpips noise").standard_normal(images.shape, dtype=np.float32))
    return {
        "blurred": _blurred(images, spec.control_blur),
        "noisy": (images + spec.control_noise * noise).clamp(0, 1),
    }


def _blurred(images: Float[Tensor, "n channels height width"], sd: float) -> Float[Tensor, "n channels height width"]:
    kernel = 2 * math.ceil(3 * sd) + 1
    return gaussian_blur(images, [kernel, kernel], [sd, sd])


def summary(distances: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """`mean`, its standard error `se` over pairs (sd / sqrt(n), ddof 1), `n`, and `per_class`, the mean by class.

    labels: the class of each pair. There must be at least two pairs.
    """
    return {
        "mean": float(distances.mean()),
        "se": float(distances.std(ddof=1) / math.sqrt(len(distances))),
        "n": len(distances),
        "per_class": {int(label): float(distances[labels == label].mean()) for label in np.unique(labels)},
    }
