"""One graph from photograph and boxes to landmarks in pixels, for apps without pre- and postprocessing of their own."""

from pfld_edge_convert.end_to_end.graph import (
    ALLOWED_PIXELS,
    BOXES_NAME,
    IMAGE_NAME,
    LANDMARKS_NAME,
    PROOF_FACES,
    end_to_end_contract,
    end_to_end_model,
    end_to_end_path,
    largest_difference,
    pixel_fingerprint,
)

__all__ = [
    "ALLOWED_PIXELS",
    "BOXES_NAME",
    "IMAGE_NAME",
    "LANDMARKS_NAME",
    "PROOF_FACES",
    "end_to_end_contract",
    "end_to_end_model",
    "end_to_end_path",
    "largest_difference",
    "pixel_fingerprint",
]
