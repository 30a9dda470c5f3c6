"""ConViT's gated positional self-attention (d'Ascoli et al., ICML 2021), a rival of MHCA: `rpe.mix: gated`.

    A = (1 - sigmoid(g)) softmax(Q K^T / sqrt(d_h)) + sigmoid(g) softmax(b)

with a gate g for each head and the bias b of MHCA (Eq. 2), whose ConViT form differs by a constant alone. ConViT adds
its class token after these blocks. Here the class token is in all blocks, as in DearKD. No patch attends to it by
position, and it attends only by content.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dearkd.errors import InputError
from dearkd.model.attention import MHCA
from dearkd.model.position import QuadraticBias


class GatedBias(QuadraticBias):
    """Alpha, Delta and the gate of each head."""

    def __init__(self, heads: int, *others: Any) -> None:
        super().__init__(heads, *others)
        self.gate = nn.Parameter(torch.ones_like(self.coefficients()[0]))

    def reset_parameters(self) -> None:
        """Reset as MHCA does. Gates start at 1, so that position has 73 % of the attention, as in ConViT."""
        super().reset_parameters()
        if hasattr(self, "gate"):  # torch's constructor of the bias calls this before there is one
            nn.init.ones_(self.gate)


class GPSA(MHCA):
    """MHCA whose position has a softmax of its own; arguments as MHCA's."""

    bias_class = GatedBias
    rpe: GatedBias

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend. Raises InputError for a mask, which has no defined meaning for two softmaxes."""
        if attn_mask is not None or is_causal:
            raise InputError("rpe.mix: gated takes no attention mask; leave the mask out, or use another rpe.mix")
        q, k, v = self.project(x)
        out = self.attn_drop(self.weights(q, k)).to(v.dtype) @ v
        out = self.norm(out.transpose(1, 2).reshape(x.shape))
        return self.proj_drop(self.proj(out))

    def weights(
        self, q: Float[Tensor, "batch heads tokens dim"], k: Float[Tensor, "batch heads tokens dim"]
    ) -> Float[Tensor, "batch heads tokens tokens"]:
        """What each token (rows) attends to, in fp32."""
        content = ((q * self.scale) @ k.transpose(-2, -1)).float().softmax(-1)
        first = self.rpe.prefix
        position = self.rpe.dropped(len(q))[..., first:, first:].float().softmax(-1)
        gate = self.rpe.gate.float().sigmoid()[:, None, None]
        patches = (1 - gate) * content[..., first:, :] + F.pad(gate * position, (first, 0))
        return torch.cat([content[..., :first, :], patches], -2)

    def logits(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens tokens"]:
        """Logarithms of the weights. Their softmax over some of the keys gives the weights among those keys."""
        return self.weights(*self.project(x)[:2]).log()
