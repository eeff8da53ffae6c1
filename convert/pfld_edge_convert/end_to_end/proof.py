"""Whether an end-to-end graph finds what `FaceLandmarker` finds with the plain file."""

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_calib import Face, jittered, portraits, read_photo
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.fingerprint import SEED
from pfld_edge_convert.inference import open_model
from pfld_edge_runtime import Contract, FaceLandmarker, Fingerprint, crop_windows, fingerprint_image

__all__ = ["ALLOWED_PIXELS", "PROOF_FACES", "largest_difference", "pixel_fingerprint"]

ALLOWED_PIXELS = 0.05
"""Crops are the runtime's bit for bit, so what is left is how onnxruntime orders a network's sums in a larger graph."""

PROOF_FACES = 16

Float = NDArray[np.float32]


def largest_difference(graph: onnx.ModelProto, plain: bytes) -> float:
    """Run both on the bundled portraits, under their own boxes, moved ones, and one that leaves the photograph.

    Args:
        graph: The end-to-end graph.
        plain: The ONNX file that it was made from, with its contract.

    Returns:
        The largest difference of a coordinate, in pixels.

    Raises:
        ConvertError: onnxruntime refuses the graph, or the difference exceeds `ALLOWED_PIXELS`.
    """
    session, landmarker = open_model(graph), FaceLandmarker(plain)
    found, expected = [], []
    for face in portraits(landmarker.contract):
        photo = np.ascontiguousarray(read_photo(face.image)[:, :, ::-1])
        boxes = _boxes(face)
        found.append(_run(session, photo, boxes))
        expected.append(landmarker(photo, boxes, "rgb"))
    difference = float(np.abs(np.concatenate(found).astype(np.float64) - np.concatenate(expected)).max())
    # Not `difference > ...`: NaN must not pass.
    if not difference <= ALLOWED_PIXELS:
        raise ConvertError(
            f"the end-to-end graph differs from the plain file by {difference:.3g} px on the bundled portraits; "
            f"at most {ALLOWED_PIXELS:g} px is allowed"
        )
    return difference


def pixel_fingerprint(graph: onnx.ModelProto, contract: Contract, tolerance: float) -> Fingerprint:
    """Record what a graph answers to the runtime's seeded image, of which the whole is the box.

    Args:
        graph: As it will be shipped.
        contract: Of the network inside: gives the image's size, and the crop's margin.
        tolerance: Largest difference, in fractions of the crop, that a device may show.
    """
    size = contract.input_size
    box = np.array([[0, 0, size, size]], np.float32)
    output = _run(open_model(graph), fingerprint_image(SEED, size), box).ravel()
    side = int(crop_windows(box, contract.crop.margin).sizes[0])
    return Fingerprint(SEED, tuple(round(float(value), 6) for value in output), tolerance * side)


def _boxes(face: Face) -> Float:
    count = PROOF_FACES // 2
    boxes = np.stack([item.bbox_xyxy for item in jittered([face], count - 1)])
    # The face's own box, moved until its centre is the photograph's corner: three quarters of it lie outside.
    outside = boxes[:1] - (boxes[:1, :2] + np.ptp(boxes[:1].reshape(2, 2), axis=0) / 2)[:, [0, 1, 0, 1]]
    return np.concatenate([boxes, outside]).astype(np.float32)


def _run(session: onnxruntime.InferenceSession, image: NDArray[np.uint8], boxes: Float) -> Float:
    try:
        found = session.run(None, {"image": image, "boxes": boxes})[0]
    except Exception as error:
        raise ConvertError(f"the end-to-end graph can't run: {' '.join(str(error).split())[:300]}") from error
    return np.asarray(found, np.float32)
