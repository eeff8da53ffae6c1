"""From one kind of box to another."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.contract import Contract, CropRule

__all__ = ["BoxMap", "scheme_box_map"]


@dataclass(frozen=True, slots=True)
class BoxMap:
    """From a detector's box to the box that is tight around the landmarks, as fractions of the detector's box.

    Attributes:
        shift: How far the centre moves, as fractions of width and height.
        scale: New width and height as fractions of the old ones.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    def __call__(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map ``(N, 4)`` boxes."""
        sizes = boxes[:, 2:] - boxes[:, :2]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + sizes * self.shift
        half = sizes * self.scale / 2
        return np.concatenate([centers - half, centers + half], axis=1)


_SCHEME_MAPS = {
    "wflw-98": BoxMap(),
    # The same contour and brows.
    "ibug-68": BoxMap(),
    # Means over 1,166 faces of WFLW training photographs, labelled by published networks.
    "five-points": BoxMap(shift=(0.0, -0.083), scale=(0.465, 0.502)),
}


def scheme_box_map(contract: Contract) -> BoxMap:
    """Say where the box of a network's landmarks lies in the box of WFLW's 98, which detectors' boxes are mapped to.

    For schemes that nobody measured, the margin tells: a crop shows the face and a little around it, so that points
    which need a larger margin fill a smaller box.

    Args:
        contract: Of the network.
    """
    side = CropRule().margin / contract.crop.margin
    return _SCHEME_MAPS.get(contract.landmarks.name, BoxMap(scale=(side, side)))
