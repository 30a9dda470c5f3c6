"""Any timm CNN as a frozen teacher: its hard label, its features at each stage, and how it is built and probed.

`timm.create_model("regnety_160")` now means weights trained on ImageNet-12k, so a teacher is named by its full tag
and must reach its published accuracy before anything learns from it.
"""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import BatchNormAct2d, ConvNormAct
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dearkd.errors import InputError, unknown
from dearkd.model import efficientnet_lite0, hub
from dearkd.model.networks import sketch
from dearkd.model.weights import load_weights, weights_sha256
from dearkd.places import home
from dearkd.plan import stage

PROBED = 300
"""Largest side in pixels that `probe` tries on a network."""
CHANNELS_LAST = 64
"""Image size in pixels from which a teacher's weights are stored channels last. RegNetY-16GF's early stages
then take a fifth less time at 224 on a CPU, and a GPU's bf16 kernels need this order. Small images take longer."""
Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, std) of each channel."""


class FeatureShape(NamedTuple):
    """Shape of one image's feature map at a teacher's stage, and whether it is never negative."""

    channels: int
    size: tuple[int, int]
    nonnegative: bool


class Seen(NamedTuple):
    """The outputs of a teacher for a batch."""

    decisions: Int[Tensor, " batch"]
    """The argmax of the logits, y_t of Eq. 5."""
    features: tuple[Float[Tensor, "batch channels height width"], ...]
    """Feature maps H^T of Eq. 4 at the wanted stages."""
    logits: Float[Tensor, "batch classes"] | None = None
    """The logits, for soft labels; None where only decisions were computed ahead."""


class TeacherNetwork(nn.Module):
    """A CNN that stays in evaluation mode and has no gradients.

    Args:
        net: a timm CNN with `forward_intermediates`.
        stages: which feature maps to return, the stem being 0 and each next one at half the side.
        given, own: (mean, std) of the images it will get and of those it was trained on, where the two differ.
        side: of the square images that it is shown, in pixels; 0: as they come.
    """

    net: Any  # torch's types do not know the methods of timm's CNNs
    grey: Tensor | None
    gain: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        stages: tuple[int, ...] = (),
        given: Moments | None = None,
        own: Moments | None = None,
        side: int = 0,
    ) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.stages, self.side = stages, side
        grey = None
        if given is not None and own is not None and len(given[0]) == 3 and len(own[0]) == 1:
            grey, given = _to_grey(given)
        gain = offset = None
        if given is not None and own is not None and given != own:
            gain, offset = _renormalisation(given, own)
        self.register_buffer("grey", grey, persistent=False)
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def train(self, mode: bool = True) -> "TeacherNetwork":
        """Stay in evaluation mode, because BatchNorm statistics must not change."""
        return super().train(False)

    def normalised(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch own high wide"]:
        """The student's pixels with the channels, mean, std and side that the network was trained on."""
        if self.grey is not None:
            images = (images * self.grey).sum(1, keepdim=True)
        if self.gain is not None and self.offset is not None:
            images = images * self.gain + self.offset
        if self.side and images.shape[-1] != self.side:
            images = F.interpolate(images, self.side, mode="bilinear", antialias=True)
        return images

    def fold(self) -> "TeacherNetwork":
        """Fold each BatchNorm into the convolution before it: the same network up to rounding, for a forward pass only.

        It folds timm's `ConvNormAct`, of which RegNets and the small scales' CNN are made; ResNets are not and stay as
        they are. Early stages are bound by memory, and this saves a pass over each activation. Afterwards weights have
        other names, and R_BN finds no statistics.
        """
        for block in self.net.modules():
            if isinstance(block, ConvNormAct) and isinstance(block.bn, BatchNormAct2d):
                block.conv = fuse_conv_bn_eval(block.conv, block.bn).requires_grad_(False)
                block.bn = nn.Sequential(block.bn.drop, block.bn.act)
        return self

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch rgb height width"]) -> Seen:
        """Decision and features for the pixels the student sees, mixed and augmented."""
        logits, features = self.logits_and_features(images)
        return Seen(logits.argmax(1), features, logits)

    @torch.no_grad()
    def logits_and_features(self, images: Float[Tensor, "batch rgb height width"]) -> tuple[Tensor, tuple[Tensor, ...]]:
        images = self.normalised(images)
        if not self.stages:
            return self.net(images), ()
        last, features = self.net.forward_intermediates(images, indices=sorted(set(self.stages)))
        found = dict(zip(sorted(set(self.stages)), features, strict=True))
        return self.net.forward_head(last), tuple(found[s] for s in self.stages)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "batch rgb height width"]) -> tuple[Tensor, ...]:
        """The wanted features only. No later stage runs, and no stage at all where no features are wanted."""
        if not self.stages:
            return ()
        wanted = sorted(set(self.stages))
        features = self.net.forward_intermediates(
            self.normalised(images), indices=wanted, stop_early=True, intermediates_only=True
        )
        found = dict(zip(wanted, features, strict=True))
        return tuple(found[s] for s in self.stages)

    def codes_and_logits(
        self, images: Float[Tensor, "batch rgb height width"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch classes"]]:
        """Pooled penultimate features and logits, with gradients to the images, for synthesis."""
        images = self.normalised(images)
        codes = self.net.forward_head(self.net.forward_features(images), pre_logits=True).flatten(1)
        classifier = self.net.get_classifier()
        if isinstance(classifier, nn.Conv2d):  # maps of one pixel, as in DLA, DPN and ResNetV2
            return codes, classifier(codes[:, :, None, None]).flatten(1)
        return codes, classifier(codes)

    def feature_shapes(self, images: Float[Tensor, "batch rgb height width"]) -> list[FeatureShape]:
        """Shape and sign of every stage's features, measured on real images."""
        _, features = self.net.forward_intermediates(self.normalised(images))
        return [FeatureShape(f.shape[1], (f.shape[2], f.shape[3]), bool((f >= 0).all())) for f in features]


def probe(model: stage.Model, side: int, channels: int) -> list[tuple[int, int, int]]:
    """(channels, height, width) of each stage's features for images of `side` pixels, without weights or arithmetic.

    Raises InputError when the network cannot take such images, naming the smallest side it takes, or has no stages.
    """
    net: Any = sketch(model).eval()
    if not hasattr(net, "forward_intermediates"):
        raise InputError(f"teacher {model.name}: timm gives no features of its stages; take another CNN")

    def stages(side: int) -> list[tuple[int, int, int]] | None:
        with contextlib.suppress(RuntimeError):
            images = torch.empty(2, channels, side, side, device="meta")
            net(images)
            return [tuple(f.shape[1:]) for f in net.forward_intermediates(images)[1]]
        return None

    found = stages(side)
    if found is None:
        taken = next((larger for larger in range(side + 1, PROBED) if stages(larger)), None)
        raise InputError(
            f"teacher {model.name}: this CNN cannot take the scale's images of {side} pixels"
            + (f" and needs {taken} or more" if taken else "")
            + "; change image_size, or take a CNN for small images, such as resnet18"
        )
    return found


class Classifier(nn.Module):
    """A teacher as a classifier from images to logits. Gradients reach the images."""

    def __init__(self, teacher: TeacherNetwork) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.teacher.net(self.teacher.normalised(images))


def build(
    teacher: stage.Teacher, data: stage.Data, weights: Path | None = None, stages: tuple[int, ...] = ()
) -> TeacherNetwork:
    """A teacher with its weights from a local file, or, when `weights` is None, from where its spec says.

    With weights from elsewhere the outputs have the order of `teacher.outputs`. `weights` that a job of ours wrote have
    the order of the data's classes (`gate.reorder`).
    Raises InputError naming the file, package or tag when the weights are missing, damaged or of another network.
    """
    rename, theirs = None, weights is None
    if weights is None and teacher.weights.startswith("package:"):
        if teacher.weights != efficientnet_lite0.WEIGHTS:
            raise InputError(
                unknown(teacher.weights, (efficientnet_lite0.WEIGHTS,), "package", f"teacher {teacher.model}: weights")
            )
        weights, rename = efficientnet_lite0.path(), efficientnet_lite0.timm_name
    elif weights is None and teacher.weights:
        weights = Path(home(teacher.weights))
    channels = teacher.channels or data.channels
    classes = len(teacher.outputs) if theirs and len(teacher.outputs) > 1 else data.classes
    args = {**dict(teacher.args), "in_chans": channels, "num_classes": classes}
    known = None if weights else hub.pretrained_cfg(teacher.model).num_classes
    if known not in (None, classes):
        raise InputError(
            f"teacher {teacher.model}: its weights have {known} outputs, but the data have {classes} classes; "
            f"fine-tune them (start: timm, and a training), or name each of its `outputs`"
        )
    net = hub.create(teacher.model, weights is None, args, "weights")
    if weights is not None:
        load_weights(net, weights, rename)
    if teacher.sha256 and theirs and weights_sha256(net) != teacher.sha256:
        raise InputError(
            f"teacher {teacher.model}: its weights have sha256 {weights_sha256(net)}, but the scale expects "
            f"{teacher.sha256}; fetch the right weights, or correct sha256 in the scale"
        )
    if (teacher.image_size or data.image_size) >= CHANNELS_LAST:
        net = net.to(memory_format=torch.channels_last)
    return TeacherNetwork(net, stages, (data.mean, data.std), moments(teacher, net, channels), teacher.image_size)


def moments(teacher: stage.Teacher, net: nn.Module, channels: int) -> Moments | None:
    """(mean, std) of the pixels that a teacher was trained on; None where the workflow trains it on the data's.

    Raises InputError where the scale gives another number of values than there are channels.
    """
    if teacher.training is not None:
        return None
    if teacher.mean:
        if len(teacher.mean) != channels:
            raise InputError(
                f"teacher {teacher.model}: mean has {len(teacher.mean)} values, but its images have {channels} "
                f"channels; set its `channels` too"
            )
        return teacher.mean, teacher.std
    tag = hub.description(net)
    # timm sums a first layer's weights for grey images, so the input must be the channels' average.
    mean, std = (tuple(m) if len(m) == channels else (sum(m) / len(m),) * channels for m in (tag["mean"], tag["std"]))
    return mean, std


def start(model: stage.Model) -> dict[str, Tensor]:
    """Weights from which a CNN's training starts (`stage.Teacher.start`), without its classifier.

    Raises InputError as `build` does.
    """
    net = hub.create(model.name, model.start == "timm", dict(model.args), "start")
    names = hub.description(net)["classifier"]
    classifier = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    if model.start != "timm":
        load_weights(net, Path(home(model.start)), but=classifier)
    return {name: value for name, value in net.state_dict().items() if not name.startswith(classifier)}


def _to_grey(given: Moments) -> tuple[Tensor, Moments]:
    """(factors that make normalised RGB pixels one grey channel by ITU-R 601, the moments of what they make)."""
    luma, (mean, std) = (0.299, 0.587, 0.114), given
    factors = torch.tensor([share * s for share, s in zip(luma, std, strict=True)]).view(-1, 1, 1)
    return factors, ((sum(share * m for share, m in zip(luma, mean, strict=True)),), (1.0,))


def _renormalisation(given: Moments, own: Moments) -> tuple[Tensor, Tensor]:
    """(gain, offset) that turn pixels normalised with `given` into pixels normalised with `own`."""
    (mean, std), (own_mean, own_std) = (tuple(torch.tensor(v).view(-1, 1, 1) for v in m) for m in (given, own))
    return std / own_std, (mean - own_mean) / own_std
