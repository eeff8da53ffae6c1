"""The processes of a run: one, or several that torchrun started, on one machine or on many."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pfld_edge_train.blocks.synchronized import synchronize_batch_norm
from pfld_edge_train.errors import TrainConfigError

__all__ = ["Processes", "joined_processes"]


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of the run.

    Attributes:
        device: Where it computes.
        rank: Its number, from 0; the first one writes and prints.
        count: How many there are.
        group: What joins them; None for a single one.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def summed(self, value: Tensor) -> Tensor:
        """Add up a tensor over all processes, without a gradient."""
        if self.group is None:
            return value
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.group is not None:
            dist.barrier(group=self.group)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Make the processes' gradients one mean, and their batches one batch for BatchNorm."""
        if self.group is None:
            return model
        synchronize_batch_norm(model, self.group)
        # BatchNorm's statistics are equal everywhere already.
        return nn.parallel.DistributedDataParallel(model, process_group=self.group, broadcast_buffers=False)


@contextmanager
def joined_processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started; give a single one where it didn't.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; several processes of a machine take a GPU each.

    Raises:
        TrainConfigError: CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainConfigError("device = 'cuda': this build of torch sees no GPU; use device = 'auto' or 'cpu'")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield Processes(torch.device(kind))
        return
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Processes(place, dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    finally:
        dist.destroy_process_group()
