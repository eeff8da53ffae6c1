"""Calibration faces: chosen evenly over pose and light, cut as the network takes them, cached between runs."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import (
    Face,
    FaceSetError,
    as_detected,
    brightness_features,
    calibration_candidates,
    calibration_warnings,
    cut_faces,
    jittered,
    portraits,
    pose_features,
    refined,
    stratified_sample,
)
from pfld_edge_runtime import Contract, LandmarkModel, open_detector, prepare_input
from pfld_edge_runtime.detection.catalogue import cache_folder

Crops = NDArray[np.uint8]

_OVERSAMPLE = 3
"""Faces that are cut for each that is wanted, so that there is a choice of light."""

_POSE_BINS = (5, 3)
_LIGHT_BINS = (4, 2)

_CACHE_FORMAT = 2
"""To be raised when crops are cut or chosen differently, so that old ones are not taken for new."""


@dataclass(frozen=True, slots=True)
class CalibrationSource:
    """Where calibration faces come from.

    Attributes:
        path: See `pfld_edge_calib.calibration_candidates`; None for the two bundled portraits.
        images: For a CSV, the folder of its images.
        detector: For folders and lists of photographs: what `open_detector` takes.
        model: The float network, by whose landmarks detected boxes become the boxes that it was trained on; needed
            with a detector.
        limit: Most faces.
        seed: Of the choice, and of the errors of the boxes.
        jitter: Move boxes as detectors err.
        cache: Keep the crops for the next run.
    """

    path: Path | None = None
    images: Path | None = None
    detector: str | Path | None = None
    model: LandmarkModel | None = None
    limit: int = 256
    seed: int = 0
    jitter: bool = True
    cache: bool = True


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Faces to calibrate on.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8 in the contract's colour order.
        source: What they are, for the contract.
        warnings: What is doubtful about them, a sentence each.
    """

    crops: Crops
    source: str
    warnings: tuple[str, ...] = ()


def calibration_crops(
    source: CalibrationSource,
    contract: Contract,
    advance: Callable[[int], object] | None = None,
    skip: Callable[[FaceSetError], object] | None = None,
) -> CalibrationSet:
    """Choose faces evenly over pose and light, and cut them.

    Args:
        source: The faces.
        contract: Of the network: crop rule, input size, colour order.
        advance: Called with 1 after each photograph that a detector searched.
        skip: Called for each photograph that can't be read; where None the first of them is an error.

    Raises:
        FaceSetError: The source holds no faces that may be used.
    """
    if source.path is None:
        count = max(2, source.limit)
        faces = jittered(portraits(contract), count // 2, source.seed)
        crops = vary_crops(np.concatenate([batch.crops for batch in cut_faces(faces, contract)]), source.seed)
        return CalibrationSet(crops, f"{len(crops)} faces of the two bundled portraits, varied, seed {source.seed}")
    if not source.path.exists():
        raise FaceSetError(f"{source.path}: no such file or folder")
    key = _cache_key(source, contract) if source.cache else ""
    cached = _load_crops(key) if source.cache else None
    skipped: list[FaceSetError] = []

    def note_skipped(error: FaceSetError) -> None:
        skipped.append(error)
        if skip is not None:
            skip(error)

    if cached is None:
        crops = _chosen(source, source.path, contract, advance, None if skip is None else note_skipped)
    else:
        crops = cached
    # What a run skipped, the next one is to name again.
    if source.cache and cached is None and not skipped:
        _save_crops(key, crops)
    name = source.path.name + (f" found by {Path(source.detector).name}" if source.detector else "")
    sentence = f"{len(crops)} faces of {name}, seed {source.seed}" + (", boxes jittered" if source.jitter else "")
    return CalibrationSet(crops, sentence, calibration_warnings(crops, contract.color_order))


def sample_crops(contract: Contract, count: int = 16) -> Crops:
    """The bundled portraits under jittered boxes, ``(count, S, S, 3)`` uint8 in the contract's colour order.

    On these the steps of a conversion are checked to compute the same.
    """
    faces = portraits(contract)
    return next(cut_faces(jittered(faces, count // len(faces)), contract, count)).crops


def sample_inputs(contract: Contract, count: int = 16) -> NDArray[np.float32]:
    """`sample_crops` as a float network takes them, ``(count, 3, S, S)`` float32."""
    return np.asarray(prepare_input(sample_crops(contract, count), contract), np.float32)


def vary_crops(crops: Crops, seed: int = 0) -> Crops:
    """Mirror, rotate by up to 45 degrees and scale by up to a fifth, black outside.

    For calibration on a handful of portraits, whose ranges are too narrow for other faces. With the two bundled
    portraits the mean landmark deviation from fp32 to INT8, on 292 unlabelled WFLW faces, falls from 0.0185 to 0.0090
    of the eye distance for the published GhostOne, and from 0.0030 to 0.0027 for pfld-edge-s. Light, contrast and
    occlusion are not varied: extremes that no face has widen the ranges (0.0105 and 0.0325). Many real faces are better
    left as they are.

    Args:
        crops: ``(N, S, S, 3)`` uint8.
        seed: Of all choices.

    Returns:
        Crops of the same shape.
    """
    random = np.random.default_rng(seed)
    varied = np.empty_like(crops)
    size = crops.shape[1]
    center = ((size - 1) / 2, (size - 1) / 2)
    for target, crop in zip(varied, crops, strict=True):
        mirrored = np.ascontiguousarray(crop[:, ::-1] if random.random() < 0.5 else crop)
        matrix = cv2.getRotationMatrix2D(center, random.uniform(-45, 45), random.uniform(0.8, 1.2))
        target[:] = cv2.warpAffine(mirrored, matrix, (size, size))
    return varied


def _chosen(
    source: CalibrationSource,
    path: Path,
    contract: Contract,
    advance: Callable[[int], object] | None,
    skip: Callable[[FaceSetError], object] | None,
) -> Crops:
    detector = None if source.detector is None else open_detector(source.detector)
    faces = calibration_candidates(path, source.images, detector, contract, advance, skip)
    if detector is not None:
        if source.model is None:
            raise ValueError("detected boxes need a network to refine them")
        # Landmarks of more faces than are cut would only cost time.
        some = np.sort(np.random.default_rng(source.seed).permutation(len(faces))[: 2 * _OVERSAMPLE * source.limit])
        faces = refined([faces[index] for index in some], source.model)
    posed = pose_features(faces)
    rows = stratified_sample(posed, _POSE_BINS, _OVERSAMPLE * source.limit, source.seed)
    kept = [faces[row] for row in rows]
    readable, crops = _cut(as_detected(kept, source.seed) if source.jitter else kept, contract, skip)
    if not readable:
        raise FaceSetError(f"{path}: none of its {len(rows)} photographs can be read")
    features = np.concatenate([posed[rows[readable]], brightness_features(crops)], axis=1)
    return crops[stratified_sample(features, (*_POSE_BINS, *_LIGHT_BINS), source.limit, source.seed)]


def _cut(
    faces: Sequence[Face], contract: Contract, skip: Callable[[FaceSetError], object] | None
) -> tuple[list[int], Crops]:
    """Cut faces; gives the rows of those whose photographs can be read, and their crops."""
    rows: list[int] = []
    parts = [np.zeros((0, contract.input_size, contract.input_size, 3), np.uint8)]
    for _, group in groupby(range(len(faces)), key=lambda row: faces[row].image):
        photo = list(group)
        try:
            parts += [batch.crops for batch in cut_faces([faces[row] for row in photo], contract)]
        except FaceSetError as error:
            if skip is None:
                raise
            skip(error)
            continue
        rows += photo
    return rows, np.concatenate(parts)


def crop_cache_folder() -> Path:
    """Where cut crops are kept: ``calibration`` in pfld-edge's cache folder."""
    return cache_folder() / "calibration"


def _cache_key(source: CalibrationSource, contract: Contract) -> str:
    """Of all that the crops depend on; with a detector also the network, by its output on two faces."""
    places = (source.path, source.images, source.detector)
    paths = [Path(path) for path in places if path is not None]
    stamps = [stamp for path in paths for stamp in (str(path.resolve()), *_file_stamps(path))]
    network = None if source.model is None else source.model.predict(sample_crops(contract, 2)).tobytes()
    shape = (contract.crop, contract.input_size, contract.color_order)
    parts = (stamps, network, shape, source.limit, source.seed, source.jitter)
    return hashlib.sha256(repr((_CACHE_FORMAT, parts)).encode()).hexdigest()[:32]


def _file_stamps(path: Path) -> list[str]:
    """Name, size and time of a file, or of every file under a folder."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    stats = ((item, item.stat()) for item in files if item.exists())
    return [f"{item.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}" for item, stat in stats]


def _load_crops(key: str) -> Crops | None:
    """``(N, S, S, 3)`` uint8, or None where there are none, or the file can't be read."""
    try:
        with (crop_cache_folder() / f"{key}.npy").open("rb") as file:
            crops = np.load(file)
    except (OSError, ValueError, EOFError):
        return None
    return crops if crops.dtype == np.uint8 and crops.ndim == 4 else None


def _save_crops(key: str, crops: Crops) -> None:
    """Write crops under a temporary name, then rename; a cache that can't be written is no error."""
    folder = crop_cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{key}.", suffix=".partial", dir=folder)
    except OSError:
        return
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, crops)
        temporary.replace(folder / f"{key}.npy")
    except OSError:
        return
    finally:
        temporary.unlink(missing_ok=True)
