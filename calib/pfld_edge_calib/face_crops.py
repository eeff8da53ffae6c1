"""Cuts the faces of a set, with the runtime's own crop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.photo import decode_photo, read_photo
from pfld_edge_runtime import BoxError, Contract, CropWindows, crop_faces, crop_windows

__all__ = ["FaceCrops", "cut_faces", "face_photo"]


@dataclass(frozen=True, slots=True)
class FaceCrops:
    """A batch of faces as the network will see them.

    Attributes:
        faces: The N faces.
        crops: ``(N, S, S, 3)`` uint8 in the contract's colour order.
        windows: Where each crop lies in its photograph.
    """

    faces: Sequence[Face]
    crops: NDArray[np.uint8]
    windows: CropWindows


def cut_faces(faces: Sequence[Face], contract: Contract, batch_size: int = 64) -> Iterator[FaceCrops]:
    """Cut the faces in order, a batch at a time; only one photograph is in memory.

    Args:
        faces: Any number of faces; neighbours of one photograph cost one read.
        contract: Gives input size, colour order and crop rule.
        batch_size: Most faces a batch.

    Raises:
        FaceSetError: A photograph can't be read.
        BoxError: A face's box can't be used.
    """
    path: Path | None = None
    encoded: bytes | None = None
    photo = np.zeros((0, 0, 3), np.uint8)
    swap = contract.color_order == "rgb"  # photographs are read as BGR
    for start in range(0, len(faces), batch_size):
        batch = faces[start : start + batch_size]
        windows = _windows(batch, contract.crop.margin)
        crops = np.empty((len(batch), contract.input_size, contract.input_size, 3), np.uint8)
        for i, face in enumerate(batch):
            if face.image != path or face.encoded is not encoded:
                path, encoded, photo = face.image, face.encoded, face_photo(face)
            window = CropWindows(windows.corners[i : i + 1], windows.sizes[i : i + 1])
            crops[i] = crop_faces(photo, window, contract.input_size, swap_channels=swap)[0]
        yield FaceCrops(batch, crops, windows)


def face_photo(face: Face) -> NDArray[np.uint8]:
    """Read the photograph of a face, ``(H, W, 3)`` uint8 BGR.

    Raises:
        FaceSetError: It is missing, or not an image.
    """
    return read_photo(face.image) if face.encoded is None else decode_photo(face.encoded, face.image)


def _windows(batch: Sequence[Face], margin: float) -> CropWindows:
    try:
        return crop_windows(np.stack([face.bbox_xyxy for face in batch]), margin)
    except BoxError as error:
        raise FaceSetError(f"a face of {batch[0].image} to {batch[-1].image}: {error}") from error
