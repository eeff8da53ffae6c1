"""Faces as a network takes them: for calibration, and for proving that a conversion changed nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import Face, calibration_faces, cut_faces, jittered, portraits
from pfld_edge_convert.vary_crops import vary_crops
from pfld_edge_runtime import Contract, prepare_input

__all__ = ["calibration_batches", "proof_samples"]

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


def proof_samples(contract: Contract, count: int = 16) -> NDArray[np.float32]:
    """The bundled portraits under jittered boxes, ``(count, 3, S, S)`` float32."""
    faces = portraits()
    crops = next(cut_faces(jittered(faces, count // len(faces)), contract, count)).crops
    return np.asarray(prepare_input(crops, contract), np.float32)


def _batches(faces: list[Face], contract: Contract, variation_seed: int | None) -> Iterator[NDArray[np.float32]]:
    for number, batch in enumerate(cut_faces(faces, contract, _BATCH)):
        crops = batch.crops if variation_seed is None else vary_crops(batch.crops, variation_seed * 1000 + number)
        yield np.asarray(prepare_input(crops, contract), np.float32)
