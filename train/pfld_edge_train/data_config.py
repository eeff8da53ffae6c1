"""The ``[[data]]`` tables of a training configuration."""

from dataclasses import dataclass

from pfld_edge_runtime import IBUG_68
from pfld_edge_train.errors import TrainConfigError

__all__ = ["DataConfig"]

_GROUPS = ("image", "person")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """One source of faces.

    Attributes:
        path: A WFLW folder, a folder that ``pfld-edge prepare`` made, or a CSV of points, relative to the configuration
            file.
        scheme: What the source's points are, where they are not the network's: ``ibug-68`` for faces with 68 points
            that train a network of WFLW's 98.
        images: For a CSV: folder that its image column is relative to; empty for the CSV's own.
        split: For a WFLW folder: which official list; ``train``, since the other one is for measuring only.
        group_by: For a CSV: ``image`` or ``person``, what a validation split must not part.
        repeat: How often an epoch shows each face.
        pose_balance: How much more often it shows a face that is turned to the side; 0: no more often. See
            `pfld_edge_train.pose_balance`.
        weighted: Whether a CSV's trust in faces and in landmarks counts; where not, everything that has any weighs 1.

    Raises:
        TrainConfigError: A value is out of range.
    """

    path: str
    scheme: str = ""
    images: str = ""
    split: str = "train"
    group_by: str = "image"
    repeat: int = 1
    pose_balance: float = 0.0
    weighted: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.path:
            raise TrainConfigError("path is empty; it names a WFLW folder, a prepared folder or a CSV of points")
        if self.scheme not in ("", IBUG_68.name):
            raise TrainConfigError(f"unknown scheme {self.scheme!r} of a source; known: {IBUG_68.name}")
        if self.split != "train":
            raise TrainConfigError(f"split must be 'train', found {self.split!r}: no run learns from a test list")
        if self.group_by not in _GROUPS:
            raise TrainConfigError(f"unknown group_by {self.group_by!r}; known: {', '.join(_GROUPS)}")
        if self.repeat < 1:
            raise TrainConfigError(f"repeat must be 1 or more, found {self.repeat}")
        if not 0 <= self.pose_balance <= 4:
            raise TrainConfigError(f"pose_balance must be from 0 to 4, found {self.pose_balance}")
