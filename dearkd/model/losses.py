"""The losses of Eq. 4 to 7 and of rivals: tensors in, scalar out; no module, no teacher, no device.

Data-free synthesis has its own terms in `priors.py`.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dearkd.model.resize import bilinear, resized


def class_loss(logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """L_CE of Eq. 6 and 7: cross-entropy with soft targets (mixed and smoothed), mean over the batch.

    This is DeiT's SoftTargetCrossEntropy, in fp32 because the softmax of fp16 logits overflows.
    """
    return F.cross_entropy(logits.float(), targets)


def logit_loss(logits: Float[Tensor, "batch classes"], decisions: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """L_logit of Eq. 5: cross-entropy with the teacher's hard decision on the same image, without smoothing.

    DearKD applies it to pooled content tokens, DeiT to its distillation token.
    """
    return F.cross_entropy(logits.float(), decisions)


def hidden_loss(
    aligned: Float[Tensor, "batch channels height width"], feature: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, ""]:
    """L_hidden of Eq. 4: mean squared difference between aligned student tokens and the teacher's feature map.

    The mean is over everything, in fp32. Raises ValueError when the shapes differ, which torch would broadcast.
    """
    if aligned.shape != feature.shape:
        raise ValueError(f"aligned {tuple(aligned.shape)} and teacher feature {tuple(feature.shape)} differ in shape")
    return F.mse_loss(aligned.float(), feature.float())


def binary_loss(logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """DeiT III (Touvron et al., ECCV 2022): binary cross-entropy, every class of a mixed image being right; its mean.

    targets: mixed and not smoothed, since any share above 0 counts as 1.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), (targets > 0).float())


def soft_loss(
    logits: Float[Tensor, "batch classes"], taught: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """Hinton's distillation, soft in DeiT (Touvron et al., ICML 2021, Eq. 2): tau^2 KL(teacher || student) at tau.

    Sum over classes, mean over the batch, in fp32. DeiT's code divides by the number of classes too.
    """
    student, teacher = ((x.float() / temperature).log_softmax(1) for x in (logits, taught))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def guidance_loss(
    projected: Float[Tensor, "batch channels rows columns"], feature: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, ""]:
    """Locality guidance (Li et al., ECCV 2022): mean squared difference, both brought to the larger of their sizes."""
    rows, columns = (max(a, b) for a, b in zip(projected.shape[2:], feature.shape[2:], strict=True))
    ours, theirs = (resized(x.float(), (rows, columns), bilinear) for x in (projected, feature))
    return F.mse_loss(ours, theirs)


def orthogonal_loss(
    projected: Float[Tensor, "batch channels 1 1"], feature: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, ""]:
    """VkD (Miles et al., CVPR 2024): smooth L1 distance of the student's projected code to the teacher's, standardised.

    The teacher's features are averaged over positions, then normalised over channels without an affine map.
    """
    code = feature.float().mean((2, 3))
    return F.smooth_l1_loss(projected.float().flatten(1), F.layer_norm(code, code.shape[1:]))
