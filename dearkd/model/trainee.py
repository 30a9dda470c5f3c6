"""What training wraps around a student: its outputs for the losses, and the parts that only stage I has."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dearkd.model.aligner import ALIGNERS
from dearkd.model.teachers import FeatureShape
from dearkd.plan.stage import LOSSES, Distillation


class Outputs(NamedTuple):
    """The outputs of a student for a batch."""

    logits: Float[Tensor, "batch classes"]
    """The prediction, from the class token."""
    taught: Float[Tensor, "batch classes"] | None
    """Logits that learn the teacher's decision: pooled content tokens (DearKD) or the distillation token (DeiT).

    Without a teacher (fine-tuning) the distillation token learns the true labels.
    """
    hidden: tuple[Float[Tensor, "batch channels height width"], ...]
    """Aligned block outputs, in the order of the pairs."""


class Trainee(nn.Module):
    """A student and the parts that stage I adds, as one module to train.

    `auxiliary` has the parts: the head of the pooled tokens (Eq. 5) and an aligner for each pair (Fig. 3). Stage II and
    the exported student do without them.

    Args:
        student: ViT or CNN.
        losses: names of the stage's losses, which decide what is built.
        knobs: needed where one of the losses learns from pooled tokens or features.
        features: shape (channels, height, width) and sign of the teacher's feature map, one per pair.

    Raises ValueError where knobs are needed and missing.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: tuple[str, ...] = ("ce",),
        knobs: Distillation | None = None,
        features: tuple[FeatureShape, ...] = (),
    ) -> None:
        super().__init__()
        self.student = student
        self.wants_token, self.wants_pooled, self.wants_hidden = (
            not {"token", "token_label", "soft_token"}.isdisjoint(losses),
            not {"logit", "soft_logit"}.isdisjoint(losses),
            any(LOSSES[name].aligner for name in losses),
        )
        if knobs is None and (self.wants_pooled or self.wants_hidden):
            raise ValueError(f"the losses {', '.join(losses)} need `knobs`, a Distillation")
        self.knobs = knobs or Distillation()
        self.auxiliary = nn.ModuleDict()
        vit: Any = student  # torch's types do not know the attributes of timm's networks
        if self.wants_pooled and self.knobs.pooled_head == "separate":
            head = self.auxiliary["pooled_head"] = nn.Linear(vit.embed_dim, vit.num_classes)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        if self.wants_hidden:
            grid, aligner = vit.patch_embed.grid_size, next(a for n in losses if (a := LOSSES[n].aligner))
            for (block, _), f in zip(self.knobs.pairs, features, strict=True):
                made = ALIGNERS[aligner](vit.embed_dim, grid, f.channels, f.size, f.nonnegative)
                self.auxiliary[f"aligner{block}"] = made

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, by their names here: the student's, and those of an orthogonal projector."""
        names = {
            name for name, _ in self.auxiliary.named_parameters(prefix="auxiliary") if ".parametrizations." in name
        }
        return names | {f"student.{name}" for name in getattr(self.student, "no_weight_decay", set)()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """timm's layer of a parameter, as in the student; `auxiliary` is in the last layer."""
        student: Any = self.student
        layers = group_parameters(student, student.group_matcher(coarse), reverse=True)
        return lambda name: layers.get(name.removeprefix("student."), max(layers.values()))

    def forward(self, images: Float[Tensor, "batch rgb height width"]) -> Outputs:
        """The outputs that the losses need, from one forward pass. The images are normalised pixels.

        Block outputs come from timm's `forward_intermediates`; there are no hooks.
        """
        if not isinstance(self.student, VisionTransformer):
            return Outputs(self.student(images), None, ())
        student: Any = self.student
        blocks = [block - 1 for block, _ in self.knobs.pairs] if self.wants_hidden else []
        last = len(student.blocks) - 1
        tokens, streams = student.forward_intermediates(images, indices=[*blocks, last], output_fmt="NLC")
        stream = dict(zip(sorted({*blocks, last}), streams, strict=True))
        taught = None
        if self.wants_token:
            taught = student.head_dist(tokens[:, 1])
        elif self.wants_pooled:
            content = stream[last] if self.knobs.pool_before_norm else tokens[:, student.num_prefix_tokens :]
            head = self.auxiliary["pooled_head"] if self.knobs.pooled_head == "separate" else student.head
            taught = head(content.mean(1))
        hidden = tuple(
            self.auxiliary[f"aligner{block + 1}"](
                student.norm(stream[block]) if self.knobs.hidden_ln else stream[block]
            )
            for block in blocks
        )
        return Outputs(student.head(tokens[:, 0]), taught, hidden)
