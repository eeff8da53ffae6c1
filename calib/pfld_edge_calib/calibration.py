"""Calibration faces for static quantization: bundled portraits, datasets, stratified sampling, box jitter, warnings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pfld_edge_calib.datasets.open_faces import open_faces
from pfld_edge_calib.datasets.points_csv import read_boxes_csv, read_points_csv
from pfld_edge_calib.datasets.wflw import wflw_list
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face, Skip, refuse
from pfld_edge_calib.find_landmarks import detected_faces
from pfld_edge_calib.photo import listed_paths, photos_in
from pfld_edge_runtime import FIVE_POINTS, IBUG_68, WFLW_98, Contract, Detector, tight_box
from pfld_edge_runtime.arrays import Float64Array, Int64Array, Uint8Array

PORTRAITS = Path(__file__).parent / "portraits"
"""Folder of the portraits; its README names their sources."""

BOXES_FILE = "boxes.csv"

_MIN_FACES = 32
"""Number of faces under which INT8 ranges depend on chance."""

_GREY = 2.0
"""Mean difference of red and blue, in grey levels, up to which a picture counts as grey."""

_POSE_POINTS = (54, 0, 32, 60, 72)
"""WFLW's tip of the nose, ends of the contour, outer corners of the eyes."""


def portraits(contract: Contract | None = None) -> list[Face]:
    """Read two faces with 98 landmarks each, pseudo-labelled by published networks: for a smoke test, not a benchmark.

    By the contract of another landmark scheme the faces get its points where they follow from the 98, else its box
    only, without landmarks.
    """
    faces = read_points_csv(PORTRAITS / "landmarks.csv")
    scheme = WFLW_98 if contract is None else contract.landmarks
    if contract is None or scheme == WFLW_98:
        return faces
    from pfld_edge_runtime import five_points, landmarks_68
    from pfld_edge_runtime.detection.detector import scheme_box_map

    mappings = {IBUG_68: landmarks_68, FIVE_POINTS: five_points}
    if scheme not in mappings:
        fit = scheme_box_map(contract)
        return [replace(face, bbox_xyxy=fit(face.bbox_xyxy[None])[0], landmarks=None) for face in faces]
    mapped = [mappings[scheme](face.landmarks)[0] for face in faces]
    return [
        replace(face, bbox_xyxy=tight_box(points), landmarks=points) for face, points in zip(faces, mapped, strict=True)
    ]


def calibration_candidates(
    path: Path,
    images: Path | None = None,
    detector: Detector | None = None,
    contract: Contract | None = None,
    advance: Callable[[int], object] = lambda _count: None,
    skip: Skip = refuse,
    faceless: Callable[[Path], object] = lambda _photo: None,
) -> list[Face]:
    """List all faces of a dataset that may be used for calibration, in the order of their photographs.

    `path` is a WFLW folder with its official training list, whose test list is never used; a CSV of landmarks; a folder
    of photographs, or a text file that lists some, with a detector; or a folder with a ``boxes.csv``
    (``image,x0,y0,x1,y1``, a line a face). Photographs of a CSV or a list are relative to `images`; `contract` is that
    of the network that the detector's boxes are for, the published PFLD protocol where None. `advance` gets 1 after
    each photograph that was searched by the detector, `skip` the error of each that is read here and can't be, and
    `faceless` each in which the detector found no face; such photographs are left out. FaceSetError where there are no
    faces that may be used.
    """
    listed = path.suffix.lower() == ".txt"
    if detector is not None:
        photos = listed_paths(path, images) if listed else photos_in(path)
        return detected_faces(photos, detector, contract or Contract(), advance, skip, faceless)
    if needs_detector(path):
        raise FaceSetError(f"{path}: photographs alone don't say where their faces are; give a detector too")
    if path.is_file():
        return open_faces(path, images=images, skip=skip).load(skip)
    if (path / "WFLW_annotations").is_dir():
        if not wflw_list(path, "train").is_file():
            raise FaceSetError(
                f"{path}: the official training list is missing ({wflw_list(path, 'train')}), and the test faces are "
                f"never calibrated on; give a CSV, or a folder of photographs with a {BOXES_FILE}"
            )
        return open_faces(path, "train").load()
    return read_boxes_csv(path / BOXES_FILE)


def is_photo_folder(path: Path) -> bool:
    """Whether a path is a folder in which no list says where faces are."""
    return path.is_dir() and not (path / "WFLW_annotations").is_dir() and not (path / BOXES_FILE).is_file()


def needs_detector(path: Path) -> bool:
    """Whether a path holds photographs, or a list of some, without anything that says where their faces are."""
    return is_photo_folder(path) or path.suffix.lower() == ".txt"


def jittered(faces: Sequence[Face], copies: int, seed: int = 0, shift: float = 0.08, scale: float = 0.12) -> list[Face]:
    """Repeat each face under its own box and ``copies - 1`` boxes with uniformly distributed errors.

    `shift` is the largest shift as a share of the box's longer side, `scale` the largest change of the sides.
    """
    random = np.random.default_rng(seed)
    result = []
    for face in faces:
        result.append(face)
        for _ in range(copies - 1):
            moved = random.uniform(-shift, shift, 2)
            result.append(_moved(face, moved, 1 + random.uniform(-scale, scale)))
    return result


def as_detected(faces: Sequence[Face], seed: int = 0, shift: float = 0.03, scale: float = 0.05) -> list[Face]:
    """Give each face's box a normally distributed error, as detectors have.

    `shift` is the shift's standard deviation as a share of the box's longer side, `scale` that of the sides' change.
    """
    random = np.random.default_rng(seed)
    return [_moved(face, random.normal(0, shift, 2), max(0.5, 1 + random.normal(0, scale))) for face in faces]


def _moved(face: Face, shift: Float64Array, factor: float) -> Face:
    """Shift a box by shares of its longer side, and scale it about its centre."""
    low, high = face.bbox_xyxy[:2], face.bbox_xyxy[2:]
    center, half = (low + high) / 2 + shift * (high - low).max(), (high - low) / 2 * factor
    return replace(face, bbox_xyxy=np.concatenate([center - half, center + half]))


def stratified_sample(features: Float64Array, bins: Sequence[int], limit: int, seed: int = 0) -> Int64Array:
    """Stratified sampling: draw rows evenly from the cells of a grid whose bounds are quantiles of the features.

    Cells bounded by quantiles hold about as many rows each, so that extreme rows keep their share of the dataset;
    ranges of INT8 tensors suffer from both too few and too many of them. `features` are ``(N, K)`` numbers, NaN where
    unknown; `bins` are K numbers of bins. The indices of at most `limit` rows are returned, sorted.
    """
    count = len(features)
    cells = np.zeros(count, np.int64)
    for column, parts in zip(features.T, bins, strict=True):
        known = np.where(np.isnan(column), np.nanmedian(column) if np.isfinite(column).any() else 0.0, column)
        cells = cells * parts + np.searchsorted(np.quantile(known, np.linspace(0, 1, parts + 1)[1:-1]), known)
    order = np.random.default_rng(seed).permutation(count)
    # The n-th row of each cell comes before the n + 1-st of any.
    rank = np.zeros(count, np.int64)
    seen: dict[int, int] = {}
    for row in order:
        rank[row] = seen.get(int(cells[row]), 0)
        seen[int(cells[row])] = rank[row] + 1
    return np.sort(order[np.argsort(rank[order], kind="stable")][:limit])


def pose_features(faces: Sequence[Face]) -> Float64Array:
    """Estimate ``(N, 2)`` yaw (-1 to 1) and roll (radians) of faces; NaN without WFLW's 98 landmarks."""
    result = np.full((len(faces), 2), np.nan)
    for row, face in zip(result, faces, strict=True):
        points, weights = face.landmarks, face.point_weights
        if points is None or len(points) != WFLW_98.num_landmarks:
            continue
        if weights is None or (weights[list(_POSE_POINTS)] > 0).all():
            nose, *ends, right_eye, left_eye = points[list(_POSE_POINTS)]
            right, left = (float(np.linalg.norm(nose - end)) for end in ends)
            across = left_eye - right_eye
            row[:] = (right - left) / max(right + left, 1e-6), np.arctan2(across[1], across[0])
    return result


def brightness_features(crops: Uint8Array) -> Float64Array:
    """``(N, 2)`` mean grey level and contrast (standard deviation) of each ``(N, S, S, 3)`` uint8 crop."""
    grey = crops.reshape(len(crops), -1).astype(np.float32)
    return np.stack([grey.mean(axis=1), grey.std(axis=1)], axis=1).astype(np.float64)


def calibration_warnings(crops: Uint8Array, color_order: str) -> tuple[str, ...]:
    """Warn of too few ``(N, S, S, 3)`` uint8 crops, and of an order other than `color_order`; a sentence each.

    Skin of any tone reflects more red than blue: so does the middle of most crops.
    """
    warnings = []
    if len(crops) < _MIN_FACES:
        warnings.append(
            f"{len(crops)} calibration faces are few: ranges from fewer than {_MIN_FACES} miss what others need"
        )
    quarter = crops.shape[1] // 4
    middle = crops[:, quarter:-quarter, quarter:-quarter].astype(np.float32)
    blue, _, red = np.moveaxis(middle.mean(axis=(1, 2)), 1, 0)[:: 1 if color_order == "bgr" else -1]
    colored = np.abs(middle[..., 0] - middle[..., 2]).mean(axis=(1, 2)) > _GREY
    if colored.sum() >= 8 and (redder := float((red > blue)[colored].mean())) < 0.5:
        warnings.append(
            f"{1 - redder:.0%} of the calibration faces are bluer than red: are they really in "
            f"{color_order.upper()} order?"
        )
    return tuple(warnings)
