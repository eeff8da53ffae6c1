"""Records what a network answers to the runtime's seeded image."""

import onnx

from pfld_edge_convert.inference import run_model
from pfld_edge_runtime import Contract, Fingerprint, fingerprint_image, prepare_input

__all__ = ["FLOAT_TOLERANCE", "INT8_TOLERANCE", "SEED", "take_fingerprint"]

SEED = 1
"""Of the image of every fingerprint."""

FLOAT_TOLERANCE = 1e-4
"""A hundredth of a pixel at 112: float kernels sum in different orders, and differ by some 1e-6."""

INT8_TOLERANCE = 1e-2
"""One pixel at 112: kernels round differently by a step here and there. Saturating arithmetic errs by far more."""


def take_fingerprint(model: onnx.ModelProto, contract: Contract, tolerance: float) -> Fingerprint:
    """Run a network on its seeded image.

    Args:
        model: As it will be shipped.
        contract: Gives input size and normalization.
        tolerance: Largest difference, in fractions of the crop, that a device may show.
    """
    image = fingerprint_image(SEED, contract.input_size)
    output = run_model(model, prepare_input(image[None], contract))[0]
    return Fingerprint(SEED, tuple(round(float(value), 6) for value in output), tolerance)
