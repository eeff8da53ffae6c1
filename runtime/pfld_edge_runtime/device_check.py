"""The self-test: does this device compute what the exporter saw?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfld_edge_runtime.errors import ModelContractError
from pfld_edge_runtime.fingerprint import fingerprint_image
from pfld_edge_runtime.landmarker import BUNDLED_MODEL, FaceLandmarker

__all__ = ["SelfTest", "self_test"]


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test of one model found.

    Attributes:
        model: The file's path; the bundled model's name; or ``bytes``.
        device: The device that really ran it.
        providers: The onnxruntime execution providers that loaded, first choice first.
        difference: Largest absolute difference from the exporter's output, in fractions of the crop's side; NaN where
            the network gave NaN.
        tolerance: The largest difference that a healthy device may show.
    """

    model: str
    device: str
    providers: tuple[str, ...]
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the device computes what the exporter saw."""
        return self.difference <= self.tolerance

    @property
    def verdict(self) -> str:
        """The outcome in one sentence; where it failed, by how much and what to do."""
        found = f"{self.model} on {self.device} differs from its exporter by {self.difference:.2g} of the crop's side"
        if self.passed:
            return f"{found}, within its tolerance of {self.tolerance:g}"
        advice = (
            "copy the file anew, or upgrade onnxruntime"
            if self.device == "cpu"
            else f"compare with device='cpu': if that passes, {self.device} miscalculates, else copy the file anew"
        )
        return f"{found}, tolerance {self.tolerance:g}: its landmarks are wrong here; {advice}"


def self_test(model: str | Path | bytes | None = None, device: str = "cpu", *, strict: bool = False) -> SelfTest:
    """Run a model on the picture of its fingerprint and compare with what its exporter saw.

    Args:
        model: An ONNX file that carries its contract, or its bytes; None for the bundled model.
        device: As for `FaceLandmarker`.
        strict: As for `FaceLandmarker`.

    Returns:
        The difference; it is not an error.

    Raises:
        ModelFileError: The file is missing or not an ONNX model.
        ModelContractError: It carries no contract or no fingerprint, or a damaged one.
        DeviceError: As for `FaceLandmarker`.
    """
    name = BUNDLED_MODEL.name if model is None else "bytes" if isinstance(model, bytes) else str(model)
    landmarker = FaceLandmarker(model, device, strict=strict)
    contract = landmarker.contract
    seen = contract.fingerprint
    if seen is None:
        raise ModelContractError(f"{name} carries no fingerprint to test by: convert it again with pfld-edge")
    if len(seen.output) != 2 * contract.landmarks.num_landmarks:
        raise ModelContractError(
            f"{name} carries a fingerprint of {len(seen.output)} numbers, not two for each of its points: "
            "convert it again with pfld-edge"
        )
    found = landmarker.predict_crops(fingerprint_image(seen.seed, contract.input_size)[None])
    difference = float(np.abs(found.reshape(-1) - np.array(seen.output)).max())
    return SelfTest(name, landmarker.device, tuple(landmarker.providers), difference, seen.tolerance)
