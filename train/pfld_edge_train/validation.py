"""The error on the validation faces."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pfld_edge_runtime import Contract
from pfld_edge_train.batches import Batch, prefetched, validation_batches
from pfld_edge_train.face_cache import FaceCache
from pfld_edge_train.processes import Processes

__all__ = ["ValidationErrors", "mean_error", "validate"]


@dataclass(frozen=True, slots=True)
class ValidationErrors:
    """Mean errors of the held-out faces, normalized by the distance of the outer eye corners.

    Attributes:
        nme: Of the faces as they are.
        hard_nme: Of their hard views; that of the faces as they are where there is none.
        score: What the best checkpoint is chosen by, the mean of both.
    """

    nme: float
    hard_nme: float

    @property
    def score(self) -> float:
        """Mean of both errors."""
        return (self.nme + self.hard_nme) / 2


def validate(
    model: nn.Module, cache: FaceCache, contract: Contract, batch_size: int, hard_views: int, processes: Processes
) -> ValidationErrors:
    """Measure a network on the held-out faces; several processes share the work.

    Args:
        model: Put into evaluation mode.
        cache: The faces.
        contract: Of the network.
        batch_size: Most faces a batch.
        hard_views: How many augmented views of a face are measured.
        processes: Those of the run; all get the same errors.
    """

    def batches(views: range) -> Iterator[Batch]:
        made = validation_batches(cache, contract, batch_size, views, processes.device, processes.rank, processes.count)
        return prefetched(made)

    points = contract.landmarks.normalizing_points
    nme = mean_error(model, batches(range(1)), points, processes)
    hard = mean_error(model, batches(range(1, 1 + hard_views)), points, processes) if hard_views else nme
    return ValidationErrors(nme, hard)


@torch.no_grad()
def mean_error(
    model: nn.Module, batches: Iterable[Batch], normalizing_points: tuple[int, int], processes: Processes | None = None
) -> float:
    """Mean NME over the batches, weighted by each landmark.

    Args:
        model: Put into evaluation mode.
        batches: On the network's device; this process's where there are several.
        normalizing_points: The two points whose distance divides a face's errors.
        processes: Whose batches count together; None for this one's alone.
    """
    model.eval()
    first, second = normalizing_points
    sums: Tensor | None = None
    for batch in batches:
        landmarks = batch.landmarks
        predicted = model(batch.faces.contiguous(memory_format=torch.channels_last)).view(landmarks.shape)
        errors = (predicted - landmarks).norm(dim=2)
        distance = (landmarks[:, first] - landmarks[:, second]).norm(dim=1)
        weighted = (errors / distance[:, None] * batch.weights).sum()
        part = torch.stack([weighted.double(), batch.weights.sum().double()])
        sums = part if sums is None else sums + part
    if processes is not None:
        sums = processes.summed(torch.zeros(2, dtype=torch.float64, device=processes.device) if sums is None else sums)
    if sums is None:
        raise ValueError("no batch to measure on")
    total, weight = sums.tolist()
    return total / weight if weight else float("nan")
