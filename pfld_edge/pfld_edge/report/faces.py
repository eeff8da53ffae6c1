"""Pictures of the faces on which a network's landmarks deviate most from the reference's, or from the truth."""

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge.drawing import SHIFT, draw_landmarks, subpixels, write_picture
from pfld_edge_calib import FaceSetError, read_photo
from pfld_edge_calib.evaluation import ModelResult, Verification
from pfld_edge_runtime import CropWindows, crop_faces, crop_windows

_SIDE, _MARGIN = 480, 1.5
_SMALL_SIDE, _SMALL_MARGIN, _QUALITY = 220, 1.3, 78
"""Of pictures in the HTML report."""
_BAR = 44
# BGR; truth, the reference, the network.
_TRUTH, _REFERENCE, _MODEL = (255, 255, 255), (90, 230, 90), (60, 60, 255)
_DARK, _LIGHT = (30, 30, 30), (235, 235, 235)


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
    """Write ``<network>-<rank>-<photograph>.png``: the truth white, the reference green, the network red.

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
            name = f"{own.replace(' ', '-')}-{rank:02d}-{Path(found.faces[row]).stem}.png"
            write_picture(folder / name, _draw_face(found, model, row))
            written.append(folder / name)
    return written


def face_overlays(found: Verification, model: ModelResult, count: int = 10) -> list[FaceOverlays]:
    """Draw the faces on which a network deviates most, the worst first; photographs that are gone are left out."""
    shown = [found.models[0], model] if model is not found.models[0] else [model]
    overlays = []
    for row in _worst_rows(found, model, count):
        try:
            crop, window = _crop(found, row, _SMALL_MARGIN, _SMALL_SIDE)
        except FaceSetError:
            continue
        pictures = []
        for label, points in (("truth", found.truth[row]), *((each.name, each.landmarks[row]) for each in shown)):
            points = _to_crop(points, window, _SMALL_SIDE)
            finite = np.isfinite(points).all()
            drawn = draw_landmarks(crop, points[None].astype(np.float32), found.scheme) if finite else crop
            data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
            pictures.append((label, f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"))
        subsets = [subset for i, subset in enumerate(found.subset_names) if found.subsets[row, i]]
        overlays.append(FaceOverlays(Path(found.faces[row]).name, subsets, row, pictures))
    return overlays


def _crop(found: Verification, row: int, margin: float, side: int) -> tuple[NDArray[np.uint8], CropWindows]:
    truth = found.truth[row]
    window = crop_windows(np.concatenate([truth.min(axis=0), truth.max(axis=0)]), margin)
    return crop_faces(read_photo(Path(found.faces[row])), window, side)[0], window


def _to_crop(points: NDArray[np.floating], window: CropWindows, side: int) -> NDArray[np.floating]:
    return np.asarray((points - window.corners[0]) * (side / window.sizes[0]))


def _worst_rows(found: Verification, model: ModelResult, count: int) -> list[int]:
    """Faces that deviate most from the reference; where there is none, those with the largest error."""
    compared = any(other.deviation is not None for other in found.models)
    if model.deviation is None and compared:
        return []
    far = model.errors.ocular if model.deviation is None else model.deviation.by_face
    known = [int(row) for row in np.argsort(-np.nan_to_num(far, nan=-1.0), kind="stable") if np.isfinite(far[row])]
    least = 0.0 if model.deviation is None else 1e-4
    return [row for row in known[:count] if far[row] > least]


def _draw_face(found: Verification, model: ModelResult, row: int) -> NDArray[np.uint8]:
    """Draw one face, enlarged, with a line from where the landmarks ought to be to where they are."""
    truth = found.truth[row]
    canvas, window = _crop(found, row, _MARGIN, _SIDE)
    reference = found.models[0] if model.deviation is not None else None
    start = truth if reference is None else reference.landmarks[row]

    def places(points: NDArray[np.floating]) -> NDArray[np.int32]:
        return subpixels(_to_crop(points, window, _SIDE))

    for first, second in zip(places(start).tolist(), places(model.landmarks[row]).tolist(), strict=True):
        cv2.line(canvas, first, second, _MODEL, 1, cv2.LINE_AA, SHIFT)
    _dots(canvas, places(truth), _TRUTH)
    if reference is not None:
        _dots(canvas, places(reference.landmarks[row]), _REFERENCE)
    _dots(canvas, places(model.landmarks[row]), _MODEL)
    return np.concatenate([_caption(model, row, reference), canvas])


def _dots(canvas: NDArray[np.uint8], places: NDArray[np.int32], color: tuple[int, int, int]) -> None:
    for x, y in places.tolist():
        cv2.circle(canvas, (x, y), round(2.8 * 2**SHIFT), _DARK, cv2.FILLED, cv2.LINE_AA, SHIFT)
        cv2.circle(canvas, (x, y), round(2.0 * 2**SHIFT), color, cv2.FILLED, cv2.LINE_AA, SHIFT)


def _caption(model: ModelResult, row: int, reference: ModelResult | None) -> NDArray[np.uint8]:
    bar = np.full((_BAR, _SIDE, 3), _DARK, np.uint8)
    nme = f"NME {model.errors.ocular[row]:.4f}"
    if reference is not None and model.deviation is not None:
        nme = f"{nme}, reference {reference.errors.ocular[row]:.4f}, deviation {model.deviation.by_face[row]:.4f}"
    _write(bar, (8, 16), nme, _LIGHT)
    x = 8
    names = [("truth", _TRUTH), ("reference", _REFERENCE), (model.name[:34], _MODEL)]
    for name, color in [item for item in names if reference is not None or item[0] != "reference"]:
        cv2.circle(bar, (x + 4, 32), 4, color, cv2.FILLED, cv2.LINE_AA)
        x = _write(bar, (x + 14, 36), name, _LIGHT) + 14
    return bar


def _write(bar: NDArray[np.uint8], place: tuple[int, int], words: str, color: tuple[int, int, int]) -> int:
    cv2.putText(bar, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)
    return place[0] + int(cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0])
