"""Faces as a network takes them: for calibration, and for proving that a conversion changed nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import (
    CropPredictor,
    Face,
    FaceSetError,
    as_detected,
    calibration_candidates,
    calibration_doubts,
    cut_faces,
    even_choice,
    jittered,
    light,
    portraits,
    pose,
    refined,
)
from pfld_edge_convert.crop_cache import file_signs, load_crops, save_crops, sources_key
from pfld_edge_convert.vary_crops import vary_crops
from pfld_edge_runtime import Contract, prepare_input

__all__ = ["CalibrationSet", "FaceSource", "calibration_crops", "proof_crops", "proof_samples"]

Crops = NDArray[np.uint8]

_OVERSAMPLE = 3
"""Faces that are cut for each that is wanted, so that there is a choice of light."""

_POSE_BINS = (5, 3)
_LIGHT_BINS = (4, 2)


@dataclass(frozen=True, slots=True)
class FaceSource:
    """Where calibration faces come from.

    Attributes:
        path: See `pfld_edge_calib.calibration_candidates`; None for the two bundled portraits.
        images: For a CSV, the folder of its images.
        detector: A YuNet ONNX file for folders of photographs.
        predict: The float network, by whose landmarks detected boxes become the boxes that it was trained on; needed
            with a detector.
        limit: Most faces.
        seed: Of the choice, and of the errors of the boxes.
        jitter: Move boxes as detectors err.
        cache: Keep the crops for the next run.
    """

    path: Path | None = None
    images: Path | None = None
    detector: Path | None = None
    predict: CropPredictor | None = None
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
    source: FaceSource, contract: Contract, advance: Callable[[int], object] | None = None
) -> CalibrationSet:
    """Choose faces evenly over pose and light, and cut them.

    Args:
        source: The faces.
        contract: Of the network: crop rule, input size, colour order.
        advance: Called with 1 after each photograph that a detector searched.

    Raises:
        FaceSetError: The source holds no faces that may be used.
    """
    if source.path is None:
        count = max(2, source.limit)
        crops = vary_crops(_cut(jittered(portraits(contract), count // 2, source.seed), contract), source.seed)
        return CalibrationSet(crops, f"{len(crops)} faces of the two bundled portraits, varied, seed {source.seed}")
    if not source.path.exists():
        raise FaceSetError(f"{source.path}: no such file or folder")
    key = _key(source, contract) if source.cache else ""
    cached = load_crops(key) if source.cache else None
    crops = _chosen(source, contract, advance) if cached is None else cached
    if source.cache and cached is None:
        save_crops(key, crops)
    name = source.path.name + (f" found by {source.detector.name}" if source.detector else "")
    sentence = f"{len(crops)} faces of {name}, seed {source.seed}" + (", boxes jittered" if source.jitter else "")
    return CalibrationSet(crops, sentence, calibration_doubts(crops, contract.color_order))


def proof_crops(contract: Contract, count: int = 16) -> Crops:
    """The bundled portraits under jittered boxes, ``(count, S, S, 3)`` uint8 in the contract's colour order."""
    faces = portraits(contract)
    return next(cut_faces(jittered(faces, count // len(faces)), contract, count)).crops


def proof_samples(contract: Contract, count: int = 16) -> NDArray[np.float32]:
    """`proof_crops` as a float network takes them, ``(count, 3, S, S)`` float32."""
    return np.asarray(prepare_input(proof_crops(contract, count), contract), np.float32)


def _chosen(source: FaceSource, contract: Contract, advance: Callable[[int], object] | None) -> Crops:
    if source.path is None:
        raise ValueError("a source without a path has nothing to choose from")
    faces = calibration_candidates(source.path, source.images, source.detector, advance)
    if source.detector is not None:
        if source.predict is None:
            raise ValueError("detected boxes need a network to refine them")
        # Landmarks of more faces than are cut would only cost time.
        some = np.sort(np.random.default_rng(source.seed).permutation(len(faces))[: 2 * _OVERSAMPLE * source.limit])
        faces = refined([faces[index] for index in some], source.predict, contract)
    posed = pose(faces)
    rows = even_choice(posed, _POSE_BINS, _OVERSAMPLE * source.limit, source.seed)
    kept = [faces[row] for row in rows]
    crops = _cut(as_detected(kept, source.seed) if source.jitter else kept, contract)
    features = np.concatenate([posed[rows], light(crops)], axis=1)
    return crops[even_choice(features, (*_POSE_BINS, *_LIGHT_BINS), source.limit, source.seed)]


def _cut(faces: Sequence[Face], contract: Contract) -> Crops:
    return np.concatenate([batch.crops for batch in cut_faces(faces, contract)])


def _key(source: FaceSource, contract: Contract) -> str:
    """Of all that the crops depend on; with a detector also the network, by what it answers."""
    paths = [path for path in (source.path, source.images, source.detector) if path is not None]
    signs = [sign for path in paths for sign in (str(path.resolve()), *file_signs(path))]
    network = None if source.predict is None else source.predict(proof_crops(contract, 2)).tobytes()
    shape = (contract.crop, contract.input_size, contract.color_order)
    return sources_key(signs, network, shape, source.limit, source.seed, source.jitter)
