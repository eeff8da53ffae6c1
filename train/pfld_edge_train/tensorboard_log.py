"""TensorBoard's events, where its package is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["TensorBoardLog", "open_tensorboard"]


class TensorBoardLog:
    """Writes figures of epochs."""

    def __init__(self, writer: Any) -> None:  # noqa: ANN401 - the package is optional, and so are its types
        """Take TensorBoard's writer."""
        self._writer = writer

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        """Add an epoch's figures."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()


def open_tensorboard(folder: Path, next_epoch: int) -> TensorBoardLog | None:
    """Open the events' folder; None where the package ``tensorboard`` is missing.

    Args:
        folder: For the events; those of a run that was killed stay there.
        next_epoch: What they say of this epoch and later ones is not shown any more.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return TensorBoardLog(SummaryWriter(str(folder), purge_step=next_epoch))
