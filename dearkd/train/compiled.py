"""`training.compile: blocks`: the parts of a step that torch.compile compiles, and the folder of the compiled code."""

import os
from pathlib import Path

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dearkd.model.teachers import TeacherNetwork
from dearkd.model.trainee import Trainee

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_parts(trainee: Trainee, teacher: TeacherNetwork | None, backend: str = "inductor") -> None:
    """Compile, when each is first called, a ViT's blocks or a CNN as a whole, what a stage adds, a teacher's stages.

    Blocks of one kind share their code, so that a student of twelve blocks compiles two of them.
    """
    student = trainee.student
    blocks = list(student.blocks) if isinstance(student, VisionTransformer) else [student]
    if isinstance(student, VisionTransformer) and any(isinstance(part, DropPath) for part in student.modules()):
        for block in blocks:
            for name in ("drop_path1", "drop_path2"):
                path = SkippedPath(getattr(block, name)).train(block.training)
                setattr(block, name, path.to(next(block.parameters()).device))
    torch._functorch.config.backward_pass_autocast = "off"  # as the loop does: the bias has its gradient in fp32
    torch._dynamo.config.recompile_limit = 64  # torch's 8 are fewer than kinds of block x modes x sizes of a batch
    for part in (*blocks, *trainee.auxiliary.children(), *(teacher.net.children() if teacher else ())):
        part.compile(backend=backend, dynamic=False)


class SkippedPath(nn.Module):
    """timm's DropPath, or nothing where that is an identity, with its probability as a tensor.

    As a number the probability would be a constant of the compiled code. Each block has another one, so no two blocks
    would share their code, and torch.compile would leave all blocks after the eighth as they are.
    """

    keep: Tensor

    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        rate = path.drop_prob if isinstance(path, DropPath) else 0.0
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) with a share of the samples 0 in training, and the others larger by as much."""
        if not self.training:
            return x
        kept = torch.rand(len(x), *(1 for _ in x.shape[1:]), device=x.device) < self.keep
        return x * (kept / self.keep).to(x.dtype)


def share_cache(folder: Path) -> None:
    """Keep compiled code in a folder that all jobs see, unless the environment names another (`CACHE`).

    torch's default is a temporary folder of each machine, so that each node of a cluster would compile again.
    """
    os.environ.setdefault(CACHE, str(folder.absolute()))
