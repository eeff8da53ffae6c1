"""What each step came to, read without holding up a GPU."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FigureReader", "StepFigures"]

_LAG = 4
"""Steps that a GPU may be ahead of what is read of it."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Of one step, equal in all processes.

    Attributes:
        loss: Of the whole batch, in pixels.
        gradient_norm: Before clipping.
        save: Whether the first process wants a checkpoint.
        stop: Whether some process was asked to stop.
    """

    loss: float
    gradient_norm: float
    save: bool
    stop: bool


class FigureReader:
    """Reads tensors of figures in their order, on GPUs some steps later: a copy runs while the next steps do.

    Reading a GPU's number at once would make it wait for Python in every step. All processes read a step at the same
    moment, so that they agree on when to save and to stop.
    """

    def __init__(self, device: torch.device, lag: int | None = None) -> None:
        """Begin with nothing to read.

        Args:
            device: Where the figures are computed.
            lag: Steps that may wait; None for what suits the device.
        """
        self._lag = lag if lag is not None else _LAG if device.type == "cuda" else 0
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def add(self, figures: Tensor) -> Iterator[StepFigures]:
        """Take a step's ``(4,)`` figures; give those of the steps whose turn has come."""
        event = None
        if figures.is_cuda:
            host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
            host.copy_(figures, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            figures = host
        self._waiting.append((figures, event))
        while len(self._waiting) > self._lag:
            yield self._next()

    def rest(self) -> Iterator[StepFigures]:
        """Give all that were not read yet."""
        while self._waiting:
            yield self._next()

    def _next(self) -> StepFigures:
        figures, event = self._waiting.popleft()
        if event is not None:
            event.synchronize()
        loss, norm, save, stop = figures.tolist()
        return StepFigures(loss, norm, save > 0, stop > 0)
