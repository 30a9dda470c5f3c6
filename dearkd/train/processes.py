"""The processes that share each batch of a training: the rank of this one, and what they exchange."""

import contextlib
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dearkd import arithmetic
from dearkd.data.images import Images


@dataclass(frozen=True)
class Processes:
    """This process, `rank` of the `count` that share a batch, on its `device`. By default it is alone, on the CPU."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> "Processes":
        """This process and its device. If torchrun has started several processes, it joins their group."""
        count, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = torch.device("cuda", local % cards) if cards else torch.device("cpu")
        if cards:
            torch.cuda.set_device(device)
        if arithmetic.deterministic():
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # by NaN, to debug
        if count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if count <= cards else "gloo")  # NCCL needs a GPU for each process
        return cls(device, rank, count)

    def meet(self) -> None:
        """Wait until all processes are here. None reads a checkpoint before the first one holds the run."""
        if self.count > 1:
            dist.barrier()

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over all processes."""
        return module if self.count == 1 else DistributedDataParallel(module, broadcast_buffers=False)

    def no_sync(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Within, gradients of a `parallel` module wait for the `last` micro-batch before they are averaged."""
        return (
            module.no_sync() if isinstance(module, DistributedDataParallel) and not last else contextlib.nullcontext()
        )

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, of any shape."""
        if self.count > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, of any shape."""
        return self.sum(values) / self.count

    def first(self, values: Tensor) -> Tensor:
        """The values of rank 0."""
        values = values.clone()
        if self.count > 1:
            dist.broadcast(values, 0)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag of any process is set. All processes must stop at the same step."""
        if self.count == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def share(self, images: Images, count: int) -> Images:
        """This process's part of the first `count` images."""
        return images.take(range(self.rank, min(count, len(images)), self.count))
