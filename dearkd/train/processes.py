"""The processes that share each batch of a training: who this one is, and what they say to each other."""

import contextlib
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dearkd.data.images import Images


@dataclass(frozen=True)
class Processes:
    """This process among those that share a batch: `rank` of `count`, on its `device`. By default alone, on the CPU."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> "Processes":
        """This process as the machine has it; joins the group when torchrun has started several."""
        count, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = torch.device("cuda", local % cards) if cards else torch.device("cpu")
        if cards:
            torch.cuda.set_device(device)
        if count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if count <= cards else "gloo")  # NCCL wants a card for each process
        return cls(device, rank, count)

    def meet(self) -> None:
        """Wait until all are here: none reads a checkpoint before the run is theirs."""
        if self.count > 1:
            dist.barrier()

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over all."""
        return module if self.count == 1 else DistributedDataParallel(module, broadcast_buffers=False)

    def no_sync(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Within, gradients of a `parallel` module wait for the `last` micro-batch before they are averaged."""
        return contextlib.nullcontext() if last or self.count == 1 else module.no_sync()

    def sum(self, values: Tensor) -> Tensor:
        if self.count > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values) / self.count

    def first(self, values: Tensor) -> Tensor:
        """The values of rank 0."""
        values = values.clone()
        if self.count > 1:
            dist.broadcast(values, 0)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any of them says so: they must leave at the same step."""
        if self.count == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def share(self, images: Images, count: int) -> Images:
        """This process's part of the first `count` images."""
        return images.take(range(self.rank, min(count, len(images)), self.count))
