"""Runs a network over labelled faces by the published protocol."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.face_crops import cut_faces
from pfld_edge_runtime import Contract

__all__ = ["CropPredictor", "predict_landmarks", "true_landmarks"]

CropPredictor = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""``(N, S, S, 3)`` uint8 crops in the contract's colour order to ``(N, P, 2)`` fractions of the crop."""


def predict_landmarks(
    predict: CropPredictor, contract: Contract, faces: Sequence[Face], advance: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """Find the landmarks of every face of a set.

    Args:
        predict: The network.
        contract: The network's contract.
        faces: At least one face.
        advance: Called with the number of faces done after each batch, for a progress bar.

    Returns:
        ``(N, P, 2)`` float32 in each face's photograph pixels.
    """
    found = []
    for batch in cut_faces(faces, contract):
        found.append(batch.windows.to_image(predict(batch.crops)))
        if advance is not None:
            advance(len(batch.faces))
    return np.concatenate(found)


def true_landmarks(faces: Sequence[Face], contract: Contract) -> NDArray[np.float32]:
    """Stack the known landmarks of a set, ``(N, P, 2)`` float32 pixels.

    Raises:
        FaceSetError: A face has none, or another number of points than the contract.
    """
    count = contract.landmarks.num_landmarks
    stacked = []
    for face in faces:
        if face.landmarks is None or len(face.landmarks) != count:
            found = "no landmarks" if face.landmarks is None else f"{len(face.landmarks)} landmarks"
            raise FaceSetError(f"{face.image}: {found}, the model predicts {count} ({contract.landmarks.name})")
        stacked.append(face.landmarks)
    return np.stack(stacked)
