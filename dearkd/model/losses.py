"""The losses of Eq. 4 to 7: tensors in, scalar out; no module, no teacher, no device.

Data-free synthesis has its own terms in `priors.py`.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def class_loss(logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """L_CE of Eq. 6 and 7: cross-entropy with soft targets (mixed and smoothed), mean over the batch.

    DeiT's SoftTargetCrossEntropy, in fp32 because the softmax of fp16 logits overflows.
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

    In fp32, mean over everything; shapes must agree, since torch would broadcast silently.
    """
    if aligned.shape != feature.shape:
        raise ValueError(f"aligned {tuple(aligned.shape)} and teacher feature {tuple(feature.shape)} differ in shape")
    return F.mse_loss(aligned.float(), feature.float())
