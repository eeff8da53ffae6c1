"""Confidence of a face's landmarks, from the predictions on its crop and on the crop's mirror image.

A network that sees a face clearly finds the same points in the mirror image; where it guesses, the two predictions
differ. That disagreement orders faces by their error (Yang and Patras, "Mirror, mirror on the wall, tell me, is the
error small?", CVPR 2015), and the contract's `ConfidenceCurve`, fitted on faces with known landmarks, turns it into a
probability.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float32Array, Float64Array
from pfld_edge_runtime.contract import ConfidenceCurve, Contract, LandmarkScheme
from pfld_edge_runtime.crop import contract_crops
from pfld_edge_runtime.errors import LandmarkError, ModelContractError

if TYPE_CHECKING:
    from pfld_edge_runtime.landmark_model import FaceLandmarker


def predict_with_mirror(
    landmarker: "FaceLandmarker", image: NDArray[np.generic], boxes: object, color: str = "rgb", roll: object = None
) -> tuple[Float32Array, Float32Array]:
    """Find landmarks twice: on each face's crop and on the crop's mirror image, in one batch of 2 N.

    Takes the arguments of the landmarker's own call. Gives two ``(N, P, 2)`` float32 in photograph pixels: the
    landmarks that `landmarker` gives, and those of the mirror images, mapped back point by point.

    Raises:
        ImageError: The image can't be used.
        BoxError: A box can't be used.
        LandmarkError: The network's landmark scheme has no mirror permutation.
    """
    contract = landmarker.contract
    if not contract.landmarks.has_mirror:
        name = contract.landmarks.name
        raise LandmarkError(f"the landmark scheme {name!r} doesn't say which points the mirror image has")
    windows, crops = contract_crops(image, boxes, contract, color, roll)
    found = landmarker.predict_crops(np.concatenate([crops, crops[:, :, ::-1]]))
    # Fractions of a crop become those of its mirror image: x is 1 - x.
    mirrored = found[len(crops) :, contract.landmarks.mirror] * np.array([-1, 1], np.float32)
    mirrored += np.array([1, 0], np.float32)
    return windows.to_image(found[: len(crops)]), windows.to_image(mirrored)


def mirror_disagreement(
    landmarks: NDArray[np.floating], mirrored: NDArray[np.floating], scheme: LandmarkScheme
) -> Float64Array:
    """Mean distance between two predictions of ``(N, P, 2)`` points, over the distance that normalizes the NME.

    The second are the points found in the mirror image, see `predict_with_mirror`. ``(N,)``, 0 and above; infinite
    where the two normalizing points of the scheme coincide.
    """
    apart = np.linalg.norm(landmarks.astype(np.float64) - mirrored, axis=2).mean(axis=1)
    first, second = scheme.normalizing_points
    distance = np.linalg.norm(landmarks[:, first].astype(np.float64) - landmarks[:, second], axis=1)
    result = np.full(len(apart), np.inf)
    np.divide(apart, distance, out=result, where=distance > 0)
    return result


def landmark_confidence(
    landmarks: NDArray[np.floating],
    mirrored: NDArray[np.floating],
    contract: Contract,
    curve: ConfidenceCurve | None = None,
) -> Float32Array:
    """Estimate the probability, ``(N,)`` float32 in 0..1, that each face's NME is under 0.1.

    Where the box holds no face, or is badly off the face, the probability is low too; its reliability and its failures
    are measured in ``docs/reading-landmarks.md``. Landmarks are as for `mirror_disagreement`; `contract` is that of the
    network that found them, and `curve` is taken in place of its own.

    Raises:
        ModelContractError: There is no curve.
    """
    curve = curve or contract.confidence_curve
    if curve is None:
        raise ModelContractError(
            f"the contract of {contract.model!r} has no confidence_curve, so its confidence is unknown: fit one with "
            "benchmarks/confidence.py and pass `curve`, or do without confidence"
        )
    return curve(mirror_disagreement(landmarks, mirrored, contract.landmarks))
