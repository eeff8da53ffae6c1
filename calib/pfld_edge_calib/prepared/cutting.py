"""Cuts the faces of one photograph."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.photo import read_photo
from pfld_edge_calib.prepared.settings import PrepareSettings
from pfld_edge_calib.wflw import WFLW_ATTRIBUTES
from pfld_edge_runtime import BoxError, crop_faces, crop_windows

__all__ = ["CutFace", "CutPhoto", "cut_photo"]


@dataclass(frozen=True, slots=True)
class CutFace:
    """One face, ready to be kept.

    Attributes:
        picture: JPEG, or raw pixels.
        landmarks: ``(P, 2)`` float32 pixels of the crop.
        weights: ``(P,)`` float32.
        attributes: ``(6,)`` bool.
        group: Of the face.
    """

    picture: bytes
    landmarks: NDArray[np.float32]
    weights: NDArray[np.float32]
    attributes: NDArray[np.bool_]
    group: str


@dataclass(frozen=True, slots=True)
class CutPhoto:
    """A photograph's faces.

    Attributes:
        faces: Those that could be cut.
        skipped: For each of the others, why.
        complaint: Why the photograph can't be read; empty where it can.
    """

    faces: tuple[CutFace, ...]
    skipped: tuple[str, ...] = ()
    complaint: str = ""


def cut_photo(faces: Sequence[Face], settings: PrepareSettings) -> CutPhoto:
    """Cut all faces of one photograph with the runtime's crop.

    Args:
        faces: Of one photograph, with landmarks.
        settings: See `PrepareSettings`.
    """
    try:
        photo = read_photo(faces[0].image)
    except FaceSetError as error:
        return CutPhoto((), ("unreadable",) * len(faces), str(error))
    cut, skipped = [], []
    for face in faces:
        found = _cut(face, photo, settings)
        if isinstance(found, str):
            skipped.append(found)
        else:
            cut.append(found)
    return CutPhoto(tuple(cut), tuple(skipped))


def _cut(face: Face, photo: NDArray[np.uint8], settings: PrepareSettings) -> CutFace | str:
    """One face, or why not."""
    if face.landmarks is None:
        return "without landmarks"
    weights = np.full(len(face.landmarks), face.weight, np.float32)
    if face.point_weights is not None:
        weights = weights * face.point_weights
    if not weights.any():
        return "of no weight"
    try:
        windows = crop_windows(face.bbox_xyxy[None], settings.contract.crop.margin)
    except BoxError:
        return "with a box that has no area"
    x, y = windows.corners[0]
    side = windows.sizes[0]
    if x >= photo.shape[1] or y >= photo.shape[0] or x + side <= 0 or y + side <= 0:
        return "outside of the photograph"
    crop = crop_faces(photo, windows, settings.size)[0]
    landmarks = windows.to_crop(face.landmarks[None])[0] * settings.size
    attributes = np.array([name in face.attributes for name in WFLW_ATTRIBUTES])
    return CutFace(_encoded(crop, settings), landmarks.astype(np.float32), weights, attributes, face.group)


def _encoded(crop: NDArray[np.uint8], settings: PrepareSettings) -> bytes:
    if settings.encoding == "raw":
        return crop.tobytes()
    # Colour at full resolution: halved, it blurs lips and irises.
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        settings.quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return bytes(cv2.imencode(".jpg", crop, options)[1])
