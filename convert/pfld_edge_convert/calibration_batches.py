"""Faces as a network takes them: for calibration, and for proving that a conversion changed nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import CropPredictor, Face, calibration_faces, cut_faces, jittered, portraits
from pfld_edge_convert.vary_crops import vary_crops
from pfld_edge_runtime import Contract, prepare_input

__all__ = ["CalibrationSet", "calibration_batches", "calibration_crops", "proof_crops", "proof_samples"]

_BATCH = 32


def calibration_batches(
    path: Path | None, contract: Contract, limit: int = 256, seed: int = 0, images: Path | None = None
) -> tuple[Iterator[NDArray[np.float32]], str]:
    """Choose faces and cut them a batch at a time.

    Args:
        path: See `pfld_edge_calib.calibration_faces`; None for the bundled portraits, which are varied.
        contract: Of the network.
        limit: Most faces.
        seed: Of the choice, and of the variation.
        images: For a CSV, the folder of its images.

    Returns:
        ``(n, 3, S, S)`` float32 batches, and what they are in words.

    Raises:
        FaceSetError: The path holds no faces that may be used.
    """
    faces = calibration_faces(path, limit, seed, images)
    name = "the two bundled portraits, varied" if path is None else path.name
    return _batches(faces, contract, seed if path is None else None), f"{len(faces)} faces of {name}, seed {seed}"


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Faces to calibrate on.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8 in the contract's colour order.
        source: What they are, for the contract.
        warnings: What is doubtful about them, a sentence each.
        landmarks: ``(N, P, 2)`` known points as fractions of the crop, where the source has them.
    """

    crops: NDArray[np.uint8]
    source: str
    warnings: tuple[str, ...] = ()
    landmarks: NDArray[np.float32] | None = None


def calibration_crops(
    path: Path | None,
    contract: Contract,
    limit: int = 256,
    seed: int = 0,
    images: Path | None = None,
    detector: Path | None = None,
    predict: CropPredictor | None = None,
) -> CalibrationSet:
    """Choose faces and cut them."""
    faces = calibration_faces(path, limit, seed, images)
    parts = [batch.crops for batch in cut_faces(faces, contract, _BATCH)]
    if path is None:
        parts = [vary_crops(crops, seed * 1000 + number) for number, crops in enumerate(parts)]
    name = "the two bundled portraits, varied" if path is None else path.name
    return CalibrationSet(np.concatenate(parts), f"{len(faces)} faces of {name}, seed {seed}")


def proof_crops(contract: Contract, count: int = 16) -> NDArray[np.uint8]:
    """The bundled portraits under jittered boxes, ``(count, S, S, 3)`` uint8 in the contract's colour order."""
    faces = portraits()
    return next(cut_faces(jittered(faces, count // len(faces)), contract, count)).crops


def proof_samples(contract: Contract, count: int = 16) -> NDArray[np.float32]:
    """`proof_crops` as a float network takes them, ``(count, 3, S, S)`` float32."""
    return np.asarray(prepare_input(proof_crops(contract, count), contract), np.float32)


def _batches(faces: list[Face], contract: Contract, variation_seed: int | None) -> Iterator[NDArray[np.float32]]:
    for number, batch in enumerate(cut_faces(faces, contract, _BATCH)):
        crops = batch.crops if variation_seed is None else vary_crops(batch.crops, variation_seed * 1000 + number)
        yield np.asarray(prepare_input(crops, contract), np.float32)
