"""The faces that deviate most: the truth, the reference and the network, each over the photograph."""

import base64
from html import escape
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge.drawing import draw_landmarks
from pfld_edge.html_report.markup import number
from pfld_edge.worst_faces import worst_rows
from pfld_edge_calib import FaceSetError, read_photo
from pfld_edge_calib.proof import ModelProof, Verification
from pfld_edge_runtime import crop_faces, crop_windows

__all__ = ["last_compared", "worst_overlays"]

_SIDE, _MARGIN, _QUALITY = 220, 1.3, 78


def last_compared(found: Verification) -> ModelProof:
    """The network that will ship: the last one, INT8 before others."""
    compared = [model for model in found.models if model.deviation is not None] or list(found.models)
    return next((model for model in reversed(compared) if model.kind == "onnx int8"), compared[-1])


def worst_overlays(found: Verification, count: int = 10) -> str:
    """Rows of three pictures, the worst face first; nothing where no face deviates."""
    model = last_compared(found)
    return "".join(_row(found, model, row) for row in worst_rows(found, model, count))


def _row(found: Verification, model: ModelProof, row: int) -> str:
    truth = found.truth[row]
    window = crop_windows(np.concatenate([truth.min(axis=0), truth.max(axis=0)]), _MARGIN)
    try:
        crop = crop_faces(read_photo(Path(found.faces[row])), window, _SIDE)[0]
    except FaceSetError:
        return ""
    name = Path(found.faces[row]).name
    shown = [("truth", truth), *((each.name, each.landmarks[row]) for each in _both(found, model))]
    pictures = "".join(
        f'<figure><img alt="{escape(f"{name}: landmarks of {label}")}" width="{_SIDE}" height="{_SIDE}" loading="lazy" '
        f'src="{_picture(crop, (points - window.corners[0]) * (_SIDE / window.sizes[0]), found)}"/>'
        f"<figcaption>{escape(label)}</figcaption></figure>"
        for label, points in shown
    )
    subsets = [subset for i, subset in enumerate(found.subset_names) if found.subsets[row, i]]
    words = f"NME {number(float(found.models[0].errors.ocular[row]))} to {number(float(model.errors.ocular[row]))}"
    if model.deviation is not None:
        words += f", mean deviation {number(float(model.deviation.by_face[row]))}"
    return (
        f'<article class="worst"><h3>{escape(name)}</h3><p class="note">{words}'
        f'{escape("; " + ", ".join(subsets)) if subsets else ""}</p><div class="three">{pictures}</div></article>'
    )


def _both(found: Verification, model: ModelProof) -> list[ModelProof]:
    return [found.models[0], model] if model is not found.models[0] else [model]


def _picture(crop: NDArray[np.uint8], points: NDArray[np.floating], found: Verification) -> str:
    drawn = (
        crop if not np.isfinite(points).all() else draw_landmarks(crop, points[None].astype(np.float32), found.scheme)
    )
    data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
