"""Pictures of the faces on which a network's landmarks lie furthest from the reference's, or from the truth."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge.drawing import SHIFT, subpixels
from pfld_edge.output_file import write_picture
from pfld_edge_calib import read_photo
from pfld_edge_calib.proof import ModelProof, Verification
from pfld_edge_runtime import crop_faces, crop_windows

__all__ = ["draw_face", "worst_rows", "write_worst_faces"]

_SIDE = 480
_MARGIN = 1.5
_BAR = 44
# BGR; truth, the reference, the network.
_TRUTH, _REFERENCE, _MODEL = (255, 255, 255), (90, 230, 90), (60, 60, 255)
_DARK, _LIGHT = (30, 30, 30), (235, 235, 235)


def write_worst_faces(found: Verification, folder: Path, count: int = 10) -> list[Path]:
    """Write ``<network>-<rank>-<photograph>.png``: the truth white, the reference green, the network red.

    Args:
        found: Networks whose landmarks are the reference's get no pictures.
        folder: Made if need be.
        count: Pictures a network at most.

    Raises:
        FaceSetError: A photograph can't be read.
        OSError: The folder can't be written to.
    """
    written = []
    names = [model.name for model in found.models]
    for number, model in enumerate(found.models):
        # Two files of one name, from two folders, would overwrite each other's pictures.
        own = model.name if names.count(model.name) == 1 else f"{number}-{model.name}"
        for rank, row in enumerate(worst_rows(found, model, count), 1):
            name = f"{own.replace(' ', '-')}-{rank:02d}-{Path(found.faces[row]).stem}.png"
            write_picture(folder / name, draw_face(found, model, row))
            written.append(folder / name)
    return written


def worst_rows(found: Verification, model: ModelProof, count: int) -> list[int]:
    """Faces that deviate most from the reference; where there is none, those with the largest error."""
    compared = any(other.deviation is not None for other in found.models)
    if model.deviation is None and compared:
        return []
    far = model.errors.ocular if model.deviation is None else model.deviation.by_face
    known = [int(row) for row in np.argsort(-np.nan_to_num(far, nan=-1.0), kind="stable") if np.isfinite(far[row])]
    least = 0.0 if model.deviation is None else 1e-4
    return [row for row in known[:count] if far[row] > least]


def draw_face(found: Verification, model: ModelProof, row: int) -> NDArray[np.uint8]:
    """Draw one face, enlarged, with a line from where the landmarks ought to be to where they are.

    Returns:
        ``(H, W, 3)`` uint8 BGR.
    """
    truth = found.truth[row]
    box = np.concatenate([truth.min(axis=0), truth.max(axis=0)])
    window = crop_windows(box, _MARGIN)
    canvas = crop_faces(read_photo(Path(found.faces[row])), window, _SIDE)[0]
    reference = found.models[0] if model.deviation is not None else None
    start = truth if reference is None else reference.landmarks[row]

    def places(points: NDArray[np.floating]) -> NDArray[np.int32]:
        return subpixels((points - window.corners[0]) * (_SIDE / window.sizes[0]))

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


def _caption(model: ModelProof, row: int, reference: ModelProof | None) -> NDArray[np.uint8]:
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
    """Write and give the right end."""
    cv2.putText(bar, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)
    return place[0] + int(cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0])
