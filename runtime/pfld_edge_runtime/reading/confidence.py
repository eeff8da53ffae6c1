"""How far a face's landmarks can be trusted: what the network says of the face, and of its mirror image.

A network that sees a face clearly finds the same points in the mirror image; one that guesses guesses twice. That
disagreement orders faces by their error (Yang and Patras, "Mirror, mirror on the wall, tell me, is the error small?",
CVPR 2015), and a curve of two parameters, fitted on faces with known landmarks, turns it into a probability.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.crop import crop_faces, crop_windows
from pfld_edge_runtime.errors import ImageError, LandmarkError
from pfld_edge_runtime.schemes import LandmarkScheme

if TYPE_CHECKING:
    from pfld_edge_runtime.landmark_network import LandmarkNetwork

__all__ = ["BUNDLED_CURVE", "ConfidenceCurve", "landmark_confidence", "mirror_disagreement", "predict_with_mirror"]

Landmarks = NDArray[np.float32]

# Fractions of a crop become those of its mirror image: x is 1 - x.
_BACK = np.array([(-1, 1), (1, 0)], np.float32)


@dataclass(frozen=True, slots=True)
class ConfidenceCurve:
    """From mirror disagreement to the probability that a face's NME is under 0.1.

    A logistic curve over the logarithm of the disagreement d: ``1 / (1 + (d / middle) ** steepness)``. It belongs to a
    network: ``benchmarks/confidence.py`` fits one to any model file.

    Attributes:
        middle: The disagreement at which landmarks are as likely good as not.
        steepness: How fast trust falls there.
    """

    middle: float
    steepness: float

    def __call__(self, disagreement: NDArray[np.float64]) -> Landmarks:
        """Map ``(N,)`` disagreements to ``(N,)`` float32 probabilities; 0 where the disagreement is infinite."""
        # Above 1e9 nothing changes any more, and powers stay finite.
        ratio = np.minimum(disagreement / self.middle, 1e9)
        return (1 / (1 + ratio**self.steepness)).astype(np.float32)


# Not a field of the contract: runtimes of today refuse a contract with a field that they don't know, and only those who
# ask need the two numbers. They were fitted to the bundled INT8 network; for another one pass its own curve.
BUNDLED_CURVE = ConfidenceCurve(middle=0.0506, steepness=4.28)
"""The curve of the bundled network, by ``benchmarks/confidence.py``."""


def predict_with_mirror(
    landmarker: "LandmarkNetwork", image: NDArray[np.generic], boxes: object, color: str = "rgb"
) -> tuple[Landmarks, Landmarks]:
    """Find landmarks twice: on each face's crop and on the crop's mirror image, in one batch of 2 N.

    Args:
        landmarker: The network.
        image: As for `FaceLandmarker`.
        boxes: As for `FaceLandmarker`.
        color: As for `FaceLandmarker`.

    Returns:
        Two ``(N, P, 2)`` float32 in photograph pixels: the landmarks that ``landmarker(image, boxes, color)`` gives,
        and those of the mirror images, mapped back point by point.

    Raises:
        ImageError: The image can't be used.
        BoxError: A box can't be used.
        LandmarkError: The network's landmark scheme knows no mirror image.
    """
    if color not in ("rgb", "bgr"):
        raise ImageError(f"color must be 'rgb' or 'bgr', not {color!r}")
    contract = landmarker.contract
    if not contract.landmarks.has_mirror:
        name = contract.landmarks.name
        raise LandmarkError(f"the landmark scheme {name!r} doesn't say which points the mirror image has")
    windows = crop_windows(boxes, contract.crop.margin)
    crops = crop_faces(image, windows, contract.input_size, swap_channels=color != contract.color_order)
    found = landmarker.predict_crops(np.concatenate([crops, crops[:, :, ::-1]]))
    plain, mirrored = found[: len(crops)], found[len(crops) :][:, contract.landmarks.mirror]
    return windows.to_image(plain), windows.to_image(mirrored * _BACK[0] + _BACK[1])


def mirror_disagreement(
    landmarks: NDArray[np.floating], mirrored: NDArray[np.floating], scheme: LandmarkScheme
) -> NDArray[np.float64]:
    """Mean distance of two findings of the same points, as a share of the distance that normalizes the NME.

    Args:
        landmarks: ``(N, P, 2)`` pixels.
        mirrored: ``(N, P, 2)`` pixels, the same points found in the mirror image; see `predict_with_mirror`.
        scheme: Of the points; names the two that normalize.

    Returns:
        ``(N,)``, 0 and above; infinite where the two normalizing points coincide.
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
    scheme: LandmarkScheme,
    curve: ConfidenceCurve = BUNDLED_CURVE,
) -> Landmarks:
    """How likely each face's landmarks are good: the probability that their NME is under 0.1.

    Where the box holds no face, or is badly off the face, the probability is low too; how reliable it is, and where it
    fails, is measured in ``docs/reading-landmarks.md``.

    Args:
        landmarks: As for `mirror_disagreement`.
        mirrored: As for `mirror_disagreement`.
        scheme: As for `mirror_disagreement`.
        curve: Of the network that found the points.

    Returns:
        ``(N,)`` float32, 0..1.
    """
    return curve(mirror_disagreement(landmarks, mirrored, scheme))
