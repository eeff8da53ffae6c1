"""The processes of a run: one, or several started by torchrun, on one machine or more."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pfld_edge_runtime import PfldEdgeError
from pfld_edge_train.blocks.synchronized import synchronize_batch_norm
from pfld_edge_train.errors import OtherProcessError, TrainConfigError

Made = TypeVar("Made")

_PATIENCE = timedelta(hours=12)
"""How long processes wait while one of them crops the faces of a large set."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of the run: its device, its number from 0 among `count`, and that on its machine.

    `group` is for sums over all processes, `waiting`, on CPUs with a long time limit, for waiting; None where there is
    one process.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None
    waiting: dist.ProcessGroup | None = None

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

    def everywhere(self, error: PfldEdgeError) -> PfldEdgeError:
        """Choose what to raise for an error that all processes meet: only the first one reports it."""
        return error if self.first else OtherProcessError(str(error))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block when all processes do; where one fails in it, all of them fail.

        Raises:
            OtherProcessError: Another process failed, with its message; or this one did and it is not the first.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised below, when the others know
            failure = error
        failures: list[str | None] = [None] * self.count
        if self.waiting is not None:
            dist.all_gather_object(failures, None if failure is None else str(failure), group=self.waiting)
        if failure is not None and (self.first or not isinstance(failure, PfldEdgeError | OSError)):
            raise failure
        messages = [text for text in failures if text is not None]
        if messages:
            raise OtherProcessError(messages[0]) from failure

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """Call what fills a disk `together`: in the first process, then in one of each machine, then in all others."""
        turn = 0 if self.first else 1 if self.local_rank == 0 else 2
        made: list[Made] = []
        for number in range(3):
            with self.together():
                if number == turn:
                    made.append(make())
        return made[0]

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Average the processes' gradients, and synchronize BatchNorm."""
        if self.group is None:
            return model
        synchronize_batch_norm(model, self.group)
        # BatchNorm's statistics are equal everywhere already.
        return nn.parallel.DistributedDataParallel(model, process_group=self.group, broadcast_buffers=False)


@contextmanager
def joined_processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started; a single one otherwise.

    `device` is ``auto``, ``cpu`` or ``cuda``; the processes of a machine take one GPU each.

    Raises:
        TrainConfigError: CUDA is asked for and absent, or there are fewer GPUs than processes.
        OtherProcessError: The connection to another process broke.
    """
    present = torch.cuda.is_available()
    if device == "cuda" and not present:
        raise TrainConfigError("device = 'cuda': torch sees no GPU here; use device = 'auto' or 'cpu'")
    kind = ("cuda" if present else "cpu") if device == "auto" else device
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield Processes(torch.device(kind))
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = _own_gpu(local_rank) if kind == "cuda" else torch.device(kind)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", device_id=place if kind == "cuda" else None)
    waiting = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield Processes(place, dist.get_rank(), dist.get_world_size(), local_rank, dist.group.WORLD, waiting)
    except RuntimeError as error:
        # Gloo names its sources in the error of a broken connection, NCCL has a class for it.
        broken = isinstance(error, dist.DistBackendError) or "gloo" in str(error) or "Connection" in str(error)
        if broken and not isinstance(error, PfldEdgeError):
            raise OtherProcessError("another process of the run ended; --resume goes on from the last one") from error
        raise
    finally:
        dist.destroy_process_group()


def _own_gpu(local_rank: int) -> torch.device:
    count = torch.cuda.device_count()
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    if wanted > count:
        raise TrainConfigError(f"{wanted} processes on this machine and {count} GPUs: --nproc-per-node {count} at most")
    place = torch.device("cuda", local_rank)
    torch.cuda.set_device(place)
    return place
