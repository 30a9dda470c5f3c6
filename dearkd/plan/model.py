"""A network by its timm name, the shape of the paper's students, and the knobs of MHCA."""

import re
from typing import Annotated, Any, Literal

from dearkd.errors import InputError, shown
from dearkd.ranges import Matches, Part, Weight, Whole
from dearkd.schema import Pairs, spec

Timm = Annotated[str, Matches(r"\w[\w.-]*", "a model of timm by name, as timm.list_models() prints them, and no path")]

SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12},
    "small": {"embed_dim": 384, "depth": 12},
    "base": {"embed_dim": 768, "depth": 12},
}
"""The paper's Ti, S and B (Sec. 5.1); a scale may override width and depth."""

DEARKD_HEADS = {"tiny": 12, "small": 12, "base": 16}
DEIT_HEADS = {"tiny": 3, "small": 6, "base": 12}


@spec
class Rpe:
    """The quadratic relative position encoding of MHCA (Eq. 2 and 3) and its knobs."""

    init: Literal["convit", "rect", "random", "zero"] = "convit"
    """convit: the largest square grid of centres, other heads global. rect: 3 x 4 for 12 heads."""
    alpha: Weight = 1.0
    form: Literal["literal", "centred"] = "literal"
    """literal: -a(|d|^2 - 2D.d), Eq. 2. centred: -a|d - D|^2; the two differ only against the class token."""
    scale: Literal["none", "sqrt_d"] = "none"
    param: Literal["alpha_delta", "free"] = "alpha_delta"
    positive: bool = False
    """Keep alpha above 0 by softplus."""
    learn_delta: bool = True
    drop: Part = 0.1
    drop_mode: Literal["element", "query", "key", "head", "none"] = "element"
    """What one draw of the dropout after the adaptive RPE removes; all but element keep the folded path."""
    per_sample: bool = False
    """Draw that mask for each image (query, key and head modes); otherwise one mask serves the batch."""
    coord: Literal["patches", "rescaled"] = "patches"
    """Unit of distances at another image size: patches, or patches of the grid at creation."""
    value_identity: bool = False
    """Start the value projection as the identity, as ConViT does."""
    weight_decay: bool = False
    path: Literal["auto", "dense", "folded", "flex"] = "auto"
    mix: Literal["added", "gated"] = "added"
    """added: one softmax over content plus position (Eq. 3). gated: ConViT's, a softmax each, which a gate mixes."""

    def __post_init__(self) -> None:
        if self.mix == "gated" and self.path in ("folded", "flex"):
            raise InputError(f"path: {self.path} cannot compute the two softmaxes of mix: gated; write path: auto")
        if self.positive and not self.alpha:
            raise InputError("positive keeps alpha above 0, but alpha is 0; raise alpha, or set positive: false")
        if self.per_sample and self.drop_mode not in ("query", "key", "head"):
            raise InputError(
                f"per_sample needs drop_mode query, key or head, not {self.drop_mode}; change drop_mode, or set "
                f"per_sample: false"
            )


@spec
class Model:
    """A timm model by name, its keyword arguments and how a fresh one is initialised."""

    name: Timm
    args: Pairs = ()
    init: Literal["deit", "fan_in", "timm"] = "deit"
    """deit: as DeiT's code. fan_in: for narrow students, see `Student.init`. timm: as timm does (CNNs)."""
    stem_stride: Whole = 0
    """Stride of a CNN's first convolution, where it is not timm's: 1 keeps the side of images of a dozen pixels."""
    start: str = ""
    """Weights that a CNN's training starts from, see `Teacher.start`."""


def geometry(model: Model) -> dict[str, Any] | None:
    """What decides the shape of one of the paper's students, its arguments over its size's; None for another model."""
    found = re.fullmatch(r"(deit|dearkd)_(tiny|small|base)(_distilled)?_patch16_224", model.name)
    if found is None:
        return None
    heads = (DEARKD_HEADS if found[1] == "dearkd" else DEIT_HEADS)[found[2]]
    plain = {"patch_size": 16, "img_size": 224, "num_heads": heads, "n_mhca": 8 if found[1] == "dearkd" else 0}
    return {**plain, **SIZES[found[2]], **dict(model.args)}


def fits(shape: dict[str, Any], where: str) -> None:
    """Check a student's shape. Raises InputError, which begins with `where`, when such a student cannot be built."""
    for name in ("embed_dim", "depth", "num_heads", "patch_size", "img_size"):
        value = shape[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65536:
            raise InputError(f"{where}: {name} is {shown(value)}; write a whole number from 1 to 65,536")
    if shape["embed_dim"] % shape["num_heads"]:
        raise InputError(
            f"{where}: embed_dim {shape['embed_dim']} is no multiple of its {shape['num_heads']} heads; "
            f"change embed_dim, or the student's deit_heads or dearkd_heads"
        )
    if shape["img_size"] % shape["patch_size"]:
        raise InputError(
            f"{where}: image_size {shape['img_size']} is no multiple of patch_size {shape['patch_size']}; change one"
        )
    if shape["n_mhca"] > shape["depth"]:
        raise InputError(f"{where}: n_mhca {shape['n_mhca']} is more than depth {shape['depth']}; change one")
