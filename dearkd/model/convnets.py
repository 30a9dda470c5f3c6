"""Small CNNs, registered in timm: teachers for images of 12 to 32 pixels."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

_CFG = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "license": "apache-2.0",
    "first_conv": "stem.conv",
    "classifier": "head.fc",
}
default_cfgs = generate_default_cfgs({"convnet_micro": _CFG, "resnet56_cifar": _CFG})


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """ResNet-56 for images of 32 pixels (He et al. 2016, projecting shortcuts): 861,620 parameters for 100 classes."""
    return convnet_micro(pretrained, widths=(16, 32, 64), depths=(9, 9, 9), strides=(1, 2, 2), **kwargs)


@register_model
def convnet_micro(
    pretrained: bool = False,
    widths: tuple[int, ...] = (24, 48, 64),
    depths: tuple[int, ...] = (1, 1, 1),
    strides: tuple[int, ...] = (1, 2, 2),
    **kwargs: Any,
) -> ByobNet:
    """A residual CNN with BatchNorm for images of a dozen pixels: the teacher of the small scales.

    Built from timm's blocks, so its stages, features and statistics are read as any timm CNN's. The stem keeps the
    side (timm's stems halve it, which costs 5 points at 12 pixels); stage k has `depths[k]` basic blocks of `widths[k]`
    channels and stride `strides[k]`.
    """
    blocks = tuple(ByoBlockCfg(type="basic", d=d, c=c, s=s) for d, c, s in zip(depths, widths, strides, strict=True))
    cfg = ByoModelCfg(blocks=blocks, stem_type="3x3", stem_pool="", stem_chs=widths[0])
    net = build_model_with_cfg(
        ByobNet, "convnet_micro", pretrained, model_cfg=cfg, feature_cfg={"flatten_sequential": True}, **kwargs
    )
    net.stem.conv.stride = (1, 1)
    return net
