"""Many looks at one face: several networks, its mirror image, several crops."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.calibration import jittered
from pfld_edge_calib.errors import LabellingError
from pfld_edge_calib.face import Face
from pfld_edge_calib.labelling.teachers import Teacher
from pfld_edge_runtime import crop_faces, crop_windows

__all__ = ["gather_looks"]

_SHIFT, _SCALE = 0.04, 0.08
"""How far further crops may lie from the first, as shares of the box: about as far as detectors err."""


def gather_looks(
    photo: NDArray[np.uint8], boxes: NDArray[np.float64], teachers: Sequence[Teacher], *, flip: bool, crops: int
) -> NDArray[np.float32]:
    """Ask every teacher for the landmarks of every face.

    Args:
        photo: ``(H, W, 3)`` BGR.
        boxes: ``(N, 4)`` tight around the landmarks, N at least 1.
        teachers: Networks of one landmark scheme.
        flip: Ask about each crop's mirror image too.
        crops: Crops of each face; the first is the box's own, the others lie off it, the same way for every face.

    Returns:
        ``(V, N, P, 2)`` photograph pixels: V looks, one for each teacher, crop and mirror image.

    Raises:
        LabellingError: A network gave something that is no number.
    """
    answers = []
    for moved in _moved_boxes(boxes, crops):
        for teacher in teachers:
            answers.append(_look(photo, moved, teacher))
            if flip:
                answers.append(_look(photo, moved, teacher, mirrored=True))
    return np.stack(answers)


def _look(
    photo: NDArray[np.uint8], boxes: NDArray[np.float64], teacher: Teacher, *, mirrored: bool = False
) -> NDArray[np.float32]:
    contract = teacher.contract
    windows = crop_windows(boxes, contract.crop.margin)
    swap = contract.color_order != "bgr"
    crops = crop_faces(photo, windows, contract.input_size, swap_channels=swap)
    if not mirrored:
        found = teacher.predict(crops)
    else:
        seen = teacher.predict(np.ascontiguousarray(crops[:, :, ::-1]))[:, contract.landmarks.mirror]
        found = np.stack([1 - seen[..., 0], seen[..., 1]], axis=-1)
    if not np.isfinite(found).all():
        raise LabellingError(f"{teacher.name} gave landmarks that are not finite numbers: the file is damaged")
    return windows.to_image(found)


def _moved_boxes(boxes: NDArray[np.float64], crops: int) -> NDArray[np.float64]:
    """Give ``(crops, N, 4)``, each face moved by the same shares of its own box."""
    # One seed a face: what a face's crops are must not hang on its neighbours.
    moved = [jittered([Face(Path(), box)], crops, 0, _SHIFT, _SCALE) for box in boxes]
    return np.array([[faces[i].bbox_xyxy for faces in moved] for i in range(crops)])
