"""The networks whose answers become labels."""

from collections.abc import Sequence
from dataclasses import dataclass

from pfld_edge_calib.errors import LabellingError
from pfld_edge_calib.evaluate import CropPredictor
from pfld_edge_runtime import Contract, LandmarkScheme

__all__ = ["Teacher", "shared_scheme"]


@dataclass(frozen=True, slots=True)
class Teacher:
    """A landmark network.

    Attributes:
        name: For messages.
        predict: Crops to landmarks, see `pfld_edge_calib.CropPredictor`.
        contract: How it is fed.
        assumed: True where its file says nothing of that, and the published PFLD protocol was taken.
    """

    name: str
    predict: CropPredictor
    contract: Contract
    assumed: bool = False


def shared_scheme(teachers: Sequence[Teacher]) -> LandmarkScheme:
    """Give the landmarks that all teachers find.

    Raises:
        LabellingError: There is no teacher, or two find other points.
    """
    if not teachers:
        raise LabellingError("no teacher: give at least one landmark network")
    first = teachers[0]
    scheme = first.contract.landmarks
    for other in teachers[1:]:
        found = other.contract.landmarks
        if found != scheme:
            raise LabellingError(
                f"{other.name} finds {found.num_landmarks} landmarks ({found.name}), {first.name} finds "
                f"{scheme.num_landmarks} ({scheme.name}): teachers must share one scheme"
            )
    return scheme
