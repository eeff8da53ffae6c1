"""Pictures of the faces on which a network's landmarks deviate most from the reference's, or from the truth."""

import base64
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pfld_edge.drawing import draw_landmarks, write_picture
from pfld_edge_calib import FaceSetError, read_photo
from pfld_edge_calib.evaluation.verification import ModelResult, Verification
from pfld_edge_runtime import crop_faces, crop_windows
from pfld_edge_runtime.arrays import Uint8Array

_MARGIN = 1.3
_SIDE, _SMALL_SIDE, _QUALITY = 480, 220, 78
"""Of a picture in a file, and of one in the HTML report, with its JPEG quality."""


@dataclass(frozen=True, slots=True)
class FaceOverlays:
    """A face with its landmarks, for the HTML report; `row` is its place in the verification.

    Pictures are pairs of a label and a ``data:`` address of a JPEG: the truth, the reference, the network.
    """

    name: str
    subsets: list[str]
    row: int
    pictures: list[tuple[str, str]]


def write_worst_faces(found: Verification, folder: Path, count: int = 10) -> list[Path]:
    """Write ``<network>-<rank>-<photograph>.png``: the truth's landmarks, the reference's, the network's, side by side.

    Networks whose landmarks are the reference's get no pictures, others at most `count`.

    Raises:
        FaceSetError: A photograph can't be read.
        OSError: The folder can't be written to.
    """
    written = []
    names = [model.name for model in found.models]
    for number, model in enumerate(found.models):
        # Two files of one name, from two folders, would overwrite each other's pictures.
        own = model.name if names.count(model.name) == 1 else f"{number}-{model.name}"
        for rank, row in enumerate(_worst_rows(found, model, count), 1):
            pictures = _pictures(found, model, row, _SIDE)
            for label, picture in pictures:
                cv2.putText(picture, label, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
            path = folder / f"{own.replace(' ', '-')}-{rank:02d}-{Path(found.faces[row]).stem}.png"
            write_picture(path, np.hstack([picture for _, picture in pictures]))
            written.append(path)
    return written


def face_overlays(found: Verification, model: ModelResult, count: int = 10) -> list[FaceOverlays]:
    """Draw the faces on which a network deviates most, the worst first; photographs that are gone are left out."""
    overlays = []
    for row in _worst_rows(found, model, count):
        with suppress(FaceSetError):
            pictures = []
            for label, drawn in _pictures(found, model, row, _SMALL_SIDE):
                data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
                pictures.append((label, f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"))
            subsets = [subset for i, subset in enumerate(found.subset_names) if found.subsets[row, i]]
            overlays.append(FaceOverlays(Path(found.faces[row]).name, subsets, row, pictures))
    return overlays


def _pictures(found: Verification, model: ModelResult, row: int, side: int) -> list[tuple[str, Uint8Array]]:
    """One face, ``(side, side, 3)`` BGR, with the truth, with the reference's landmarks and with the network's."""
    truth = found.truth[row]
    window = crop_windows(np.concatenate([truth.min(axis=0), truth.max(axis=0)]), _MARGIN)
    crop = crop_faces(read_photo(Path(found.faces[row])), window, side)[0]
    shown = [found.models[0], model] if model is not found.models[0] else [model]
    pictures = []
    for label, points in (("truth", truth), *((each.name, each.landmarks[row]) for each in shown)):
        placed = ((points - window.corners[0]) * (side / window.sizes[0])).astype(np.float32)
        finite = np.isfinite(placed).all()
        pictures.append((label, draw_landmarks(crop, placed[None], found.scheme) if finite else crop.copy()))
    return pictures


def _worst_rows(found: Verification, model: ModelResult, count: int) -> list[int]:
    """Faces that deviate most from the reference; where there is none, those with the largest error."""
    compared = any(other.deviation is not None for other in found.models)
    if model.deviation is None and compared:
        return []
    far = model.errors.ocular if model.deviation is None else model.deviation.by_face
    known = [int(row) for row in np.argsort(-np.nan_to_num(far, nan=-1.0), kind="stable") if np.isfinite(far[row])]
    least = 0.0 if model.deviation is None else 1e-4
    return [row for row in known[:count] if far[row] > least]
