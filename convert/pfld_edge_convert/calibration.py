"""Calibration faces: chosen evenly over pose and light, cut as the network takes them, cached between runs."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np

from pfld_edge_calib import Face, FaceSetError, as_detected, cut_faces, jittered, portraits, refined
from pfld_edge_calib.calibration import (
    brightness_features,
    calibration_candidates,
    calibration_warnings,
    pose_features,
    stratified_sample,
)
from pfld_edge_calib.face import Skip, refuse
from pfld_edge_calib.files import replacing
from pfld_edge_calib.photo import UnusableFaces, face_photo, folder_hint
from pfld_edge_runtime import Contract, LandmarkModel, open_detector
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array
from pfld_edge_runtime.detection.catalogue import cache_folder, detector_path

_OVERSAMPLE = 3
"""Faces that are cut for each that is wanted, so that there is a choice of light."""

_BENDING = 0.03
"""Standard deviation of the field that bends portraits, as a share of the crop."""
_BLURRED, _GREY = 0.6, 0.1
"""Shares of the portraits that lose resolution, and their colours."""

_UNUSUAL = 4
"""Unusual views of the portraits for each of the others."""
_FRAMES, _LIGHTS, _FACELESS, _OCCLUDED = 3.0, 4.0, 0.2, 0.3
"""How much more frames and light vary in unusual views, and the shares that show no face or are partly occluded."""

_POSE_BINS = (5, 3)
_LIGHT_BINS = (4, 2)

_CACHE_FORMAT = 3
"""To be raised when crops are cut or chosen differently, so that old ones are not taken for new."""


@dataclass(frozen=True, slots=True)
class CalibrationSource:
    """Where calibration faces come from, at most `limit`: a path and images as `calibration_candidates` takes them.

    Without a path, the two bundled portraits. A detector, for folders and lists of photographs, is what `open_detector`
    takes, and needs the float model, by whose landmarks detected boxes become the boxes that it was trained on.
    `jitter` moves boxes as detectors err; `cache` keeps the crops for the next run.
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
    """``(N, S, S, 3)`` uint8 crops in the contract's colour order, what they are, and what is doubtful about them.

    `faceless` names the photographs in which the detector found no face; they give no crops. `unusual` are more crops,
    where the faces are too few to show what a network computes on others; see `Quantizer`. They are made when called
    for: many networks need none.
    """

    crops: Uint8Array
    source: str
    warnings: tuple[str, ...] = ()
    faceless: tuple[str, ...] = ()
    unusual: Callable[[], Uint8Array] | None = None


def calibration_crops(
    source: CalibrationSource,
    contract: Contract,
    advance: Callable[[int], object] = lambda _count: None,
    skip: Skip = refuse,
) -> CalibrationSet:
    """Choose faces evenly over pose and light, and cut them.

    `advance` is called with 1 after each photograph that a detector searched, `skip` for each that can't be read;
    by default the first of them is an error.

    Raises:
        FaceSetError: The source holds no faces that may be used.
    """
    if source.path is None:
        varied = portrait_crops(contract, max(2, source.limit), source.seed)
        unusual = partial(portrait_crops, contract, _UNUSUAL * len(varied), source.seed, unusual=True)
        sentence = f"{len(varied)} faces of the two bundled portraits, varied, seed {source.seed}"
        return CalibrationSet(varied, sentence, unusual=unusual)
    if not source.path.exists():
        raise FaceSetError(f"{source.path}: no such file or folder")
    key = _cache_key(source, contract) if source.cache else ""
    kept, skipped = _load_crops(key) if source.cache else None, list[FaceSetError]()

    def note_skipped(error: FaceSetError) -> None:
        skipped.append(error)
        skip(error)

    if kept is None:
        kept = _chosen(source, source.path, contract, advance, note_skipped)
        # What a run skipped, the next one is to name again.
        if source.cache and not skipped:
            with suppress(OSError), replacing(crop_cache_folder() / f"{key}.npz") as file:
                np.savez(file, crops=kept[0], faceless=np.array(kept[1], np.str_))
    crops, faceless = kept
    name = source.path.name + (f" found by {Path(source.detector).name}" if source.detector else "")
    sentence = f"{len(crops)} faces of {name}, seed {source.seed}" + (", boxes jittered" if source.jitter else "")
    return CalibrationSet(crops, sentence, calibration_warnings(crops, contract.color_order), tuple(faceless))


def sample_crops(contract: Contract, count: int = 16) -> Uint8Array:
    """The bundled portraits under jittered boxes, ``(count, S, S, 3)`` uint8 in the contract's colour order.

    On these the steps of a conversion are checked to compute the same.
    """
    faces = portraits(contract)
    return next(cut_faces(jittered(faces, count // len(faces)), contract, count)).crops


def portrait_crops(contract: Contract, count: int, seed: int = 0, *, unusual: bool = False) -> Uint8Array:
    """The two bundled portraits in turns, varied as faces of photographs are; ``(count, S, S, 3)`` uint8 crops.

    Rolled, shifted, scaled, mirrored and bent by a smooth field, in another light, mostly out of focus, with noise: two
    sharp portraits in studio light have other ranges and mean activations than most faces. Not partly occluded: patches
    of another picture move the means away from those of faces.

    `unusual` views vary much more; some are partly occluded, some show no face. Channels of a network that are zero on
    all views of the portraits but large on other faces are large on some of these too. Their means are not those of
    faces.
    """
    random, size = np.random.default_rng([seed, 1] if unusual else seed), contract.input_size
    frames, lights = (_FRAMES, _LIGHTS) if unusual else (1.0, 1.0)
    faces = portraits(contract)
    blurs = [0.3 * _side(face, contract) / size for face in faces]  # against aliasing
    photos = [
        np.asarray(cv2.GaussianBlur(face_photo(face), (0, 0), blur), np.uint8)
        for face, blur in zip(faces, blurs, strict=True)
    ]
    crops = np.empty((count, size, size, 3), np.uint8)
    for row, crop in enumerate(crops):
        bent = _bent(photos[row % 2], faces[row % 2], contract, random, frames)
        if unusual:
            _occlude(bent, random)
        crop[:] = np.clip(_in_other_light(bent, random, lights), 0, 255)
    return crops if contract.color_order == "bgr" else np.ascontiguousarray(crops[..., ::-1])


def _side(face: Face, contract: Contract) -> float:
    return float((face.bbox_xyxy[2:] - face.bbox_xyxy[:2]).max() * contract.crop.margin)


def _bent(
    photo: Uint8Array, face: Face, contract: Contract, random: np.random.Generator, errors: float
) -> Float32Array:
    """A face in a random frame, stretched here and there: ``(S, S, 3)``; `errors` is a factor on those of its box."""
    size = contract.input_size
    even = (np.arange(size) + 0.5) / size - 0.5
    fields = [cv2.resize(random.normal(0, _BENDING, (4, 4)), (size, size), interpolation=cv2.INTER_CUBIC) for _ in "xy"]
    points = np.stack(np.meshgrid(even, even), axis=-1) + np.stack(fields, axis=-1)
    scales = np.exp(random.normal(0, 0.1, 2) + errors * random.normal(0, 0.06))
    points = points * scales + random.normal(0, 0.03 * errors, 2)
    points[..., 0] *= random.choice([-1, 1])
    roll = np.radians(random.normal(0, 45))
    turned = points @ np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    x, y = np.moveaxis(face.bbox_xyxy.reshape(2, 2).mean(axis=0) + turned * _side(face, contract) - 0.5, -1, 0)
    return cv2.remap(photo, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR).astype(np.float32)


def _occlude(crop: Float32Array, random: np.random.Generator) -> None:
    """Cover some crops ``(S, S, 3)``, and a rectangle of others, with coloured noise of all sizes, in place."""
    kind, (top, left), (height, width) = random.random(), random.uniform(-0.2, 0.9, 2), random.uniform(0.15, 0.7, 2)
    if kind < _FACELESS:
        top, left, height, width = 0.0, 0.0, 1.0, 1.0
    elif kind > _FACELESS + _OCCLUDED:
        return
    rows, columns = (
        slice(*np.clip(np.rint([start * len(crop), (start + side) * len(crop)]), 0, len(crop)).astype(int))
        for start, side in ((top, height), (left, width))
    )
    noise = sum(
        random.exponential()
        * cv2.resize(random.normal(size=(side, side, 3)), crop.shape[:2], interpolation=cv2.INTER_CUBIC)
        for side in (2, 4, 8, 16, 32)
    )
    noise = (noise - np.mean(noise)) / np.std(noise) * random.uniform(20, 90) + random.uniform(40, 215)
    crop[rows, columns] = noise[rows, columns]


def _in_other_light(crop: Float32Array, random: np.random.Generator, strength: float) -> Float64Array:
    """Another resolution, cast, contrast, brightness and direction of the light; noise."""
    size = len(crop)
    if random.random() < _BLURRED:
        small = cv2.resize(crop, (round(size / random.uniform(1.5, 4)),) * 2, interpolation=cv2.INTER_AREA)
        crop = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    if random.random() < _GREY:
        crop = np.repeat(crop.mean(axis=2, keepdims=True), 3, axis=2)
    cast, (contrast, brightness) = random.normal(0, 0.03 * strength, 3), random.normal(0, strength, 2) * (0.1, 0.12)
    lit = crop * np.exp(cast)
    lit = (lit - lit.mean()) * np.exp(contrast) + lit.mean() * np.exp(brightness)
    across, down = random.normal(0, 0.09 * strength, (2, 1)) * np.linspace(-0.5, 0.5, size)
    noise = random.normal(0, random.uniform(0, 4 * strength), lit.shape)
    return np.asarray(lit * (1 + across + down[:, None])[..., None] + noise)


def vary_crops(crops: Uint8Array, seed: int = 0) -> Uint8Array:
    """Mirror, rotate by up to 45 degrees and scale by up to a fifth, black outside; ``(N, S, S, 3)`` uint8 crops.

    For more samples of features that are one number a face.
    """
    random = np.random.default_rng(seed)
    varied = np.empty_like(crops)
    size = crops.shape[1]
    for target, crop in zip(varied, crops, strict=True):
        mirrored = np.ascontiguousarray(crop[:, ::-1] if random.random() < 0.5 else crop)
        middle = ((size - 1) / 2,) * 2
        matrix = cv2.getRotationMatrix2D(middle, random.uniform(-45, 45), random.uniform(0.8, 1.2))
        target[:] = cv2.warpAffine(mirrored, matrix, (size, size))
    return varied


def _chosen(
    source: CalibrationSource,
    path: Path,
    contract: Contract,
    advance: Callable[[int], object],
    skip: Skip,
) -> tuple[Uint8Array, list[str]]:
    """Give the crops, and the photographs in which no face was found."""
    detector = None if source.detector is None else open_detector(source.detector)
    faceless = list[str]()
    faces = calibration_candidates(
        path, source.images, detector, contract, advance, skip, lambda photo: faceless.append(str(photo))
    )
    if detector is not None:
        if source.model is None:
            raise ValueError("detected boxes need a network to refine them")
        # Landmarks of more faces than are cut would only cost time.
        some = np.sort(np.random.default_rng(source.seed).permutation(len(faces))[: 2 * _OVERSAMPLE * source.limit])
        faces = [faces[index] for index in some]
        # The landmarks of an untrained network collapse in all of them.
        faces = refined(faces, source.model) or faces
    posed = pose_features(faces)
    rows = stratified_sample(posed, _POSE_BINS, _OVERSAMPLE * source.limit, source.seed)
    kept = [faces[row] for row in rows]
    unusable = UnusableFaces(skip)
    batches = list(cut_faces(as_detected(kept, source.seed) if source.jitter else kept, contract, unusable=unusable))
    if not batches:
        reasons = unusable.unreadable.values()
        raise FaceSetError(f"{path}: none of its {len(rows)} photographs can be read{folder_hint(reasons)}")
    crops = np.concatenate([batch.crops for batch in batches])
    readable = np.concatenate([batch.rows for batch in batches])
    features = np.concatenate([posed[rows[readable]], brightness_features(crops)], axis=1)
    return crops[stratified_sample(features, (*_POSE_BINS, *_LIGHT_BINS), source.limit, source.seed)], faceless


def crop_cache_folder() -> Path:
    """Where cut crops are kept: ``calibration`` in pfld-edge's cache folder."""
    return cache_folder() / "calibration"


def _cache_key(source: CalibrationSource, contract: Contract) -> str:
    """Of all that the crops depend on; with a detector also the network, by its output on two faces."""
    stamps = []
    detector = None if source.detector is None else detector_path(source.detector)
    for path in (path for path in (source.path, source.images, detector) if path is not None):
        files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
        stats = ((item, item.stat()) for item in files if item.exists())
        stamps += [str(path.resolve())]
        stamps += [f"{item.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}" for item, stat in stats]
    network = None if source.model is None else source.model.predict(sample_crops(contract, 2)).tobytes()
    shape = (contract.crop, contract.input_size, contract.color_order)
    parts = (stamps, network, shape, source.limit, source.seed, source.jitter)
    return hashlib.sha256(repr((_CACHE_FORMAT, parts)).encode()).hexdigest()[:32]


def _load_crops(key: str) -> tuple[Uint8Array, list[str]] | None:
    """What `_chosen` gave; None where there is nothing, or the file can't be read."""
    try:
        with (crop_cache_folder() / f"{key}.npz").open("rb") as file, np.load(file) as kept:
            crops, faceless = kept["crops"], kept["faceless"].tolist()
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    return (crops, faceless) if crops.dtype == np.uint8 and crops.ndim == 4 else None
