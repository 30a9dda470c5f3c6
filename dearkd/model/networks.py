"""Any network of a plan, built from its name in timm, and the weights with which its training starts."""

import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dearkd.errors import InputError, unknown
from dearkd.keys import key_of, torch_generator
from dearkd.model import convnets, hub, t2t  # noqa: F401  convnets and t2t register their models in timm
from dearkd.model.students import DearKD
from dearkd.plan.stage import Model


def create(model: Model, seed: int) -> nn.Module:
    """A network with fresh weights. Parameters of the same name and shape in two students start from the same values.

    seed: of the run; each parameter has a key of its own. Raises InputError naming the model when timm knows none of
    that name, or refuses its arguments.
    """
    torch.manual_seed(key_of(seed, "init"))
    net = _from_timm(model)
    if model.stem_stride:
        first = net.get_submodule(hub.description(net)["first_conv"])
        assert isinstance(first, nn.Conv2d)
        first.stride = (model.stem_stride, model.stem_stride)
    if model.init != "timm":
        _initialise(net, model.init, seed)
    return net


def sketch(model: Model) -> nn.Module:
    """A network on torch's `meta` device, without values: it shows its shapes, and whether it can be built.

    Raises InputError as `create` does.
    """
    with torch.device("meta"):
        return _from_timm(model)


def _from_timm(model: Model) -> nn.Module:
    if not timm.is_model(model.name):
        raise InputError(unknown(model.name, timm.list_models(), "model", "timm"))
    try:
        return timm.create_model(model.name, **_arguments(model))
    except (RuntimeError, TypeError, AssertionError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"model {model.name}: timm cannot build it ({' '.join(str(error).split())[:300]}); correct its args"
        ) from None


def _arguments(model: Model) -> dict[str, Any]:
    return {k: dict(v) if k == "rpe" else v for k, v in model.args}


def _initialise(net: nn.Module, init: str, seed: int) -> None:
    """Redraw each random weight from a generator keyed by its name.

    deit: truncated normal of std 0.02 for linear weights, positions and tokens (timm's own class token starts at 1e-6);
    the patch convolution keeps torch's default. fan_in: std 1/sqrt(fan in) for linear and patch weights, 0.5 for
    positions: at width 36 the std of 0.02, right for 192, makes every block the identity.
    """
    for name, parameter in net.named_parameters():
        generator = torch_generator(seed, "init", name)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
        if ".rpe." in name or parameter.ndim == 1 or not parameter.requires_grad:
            continue
        if name.endswith("_token"):
            std = 0.02
        elif name == "pos_embed":
            std = 0.02 if init == "deit" else 0.5
        elif name.startswith("patch_embed.") and init == "deit":
            bound = 1 / math.sqrt(fan_in)  # torch's kaiming_uniform_(a=sqrt(5))
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
            continue
        else:
            std = 0.02 if init == "deit" else 1 / math.sqrt(fan_in)
        nn.init.trunc_normal_(parameter, std=std, generator=generator)
    if isinstance(net, DearKD) and net.rpe.value_identity:
        with torch.no_grad():
            for attention in net.convolutional():
                attention.qkv.weight[-net.embed_dim :] = torch.eye(net.embed_dim)


def adopt(student: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put the weights of a trained student into another, except those of its classifiers. A CNN takes all weights.

    Positions are resampled to the grid of `student` by timm's bicubic interpolation, as DeiT does when it fine-tunes at
    another resolution (`main.py` of DeiT).
    """
    own = student.state_dict()
    if not isinstance(student, VisionTransformer):
        student.load_state_dict({**own, **weights})
        return
    kept = {k: v for k, v in weights.items() if not k.startswith(("head.", "head_dist."))}
    kept["pos_embed"] = resample_abs_pos_embed(
        kept["pos_embed"], list(student.patch_embed.grid_size), num_prefix_tokens=student.num_prefix_tokens
    )
    student.load_state_dict({**own, **kept})


def freeze_positions(student: nn.Module) -> None:
    """Freeze alpha and Delta, the position encodings of MHCA; all other parameters learn."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(".rpe." not in name)
