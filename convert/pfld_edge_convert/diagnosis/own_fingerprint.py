"""Whether a file still computes what its exporter saw."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.proof import ProofModel, Suspicion
from pfld_edge_convert.diagnosis.finding import Finding
from pfld_edge_convert.inference import open_model
from pfld_edge_convert.onnx_file import load_onnx
from pfld_edge_runtime import Contract, crop_windows, fingerprint_image, prepare_input

__all__ = ["FingerprintCheck", "check_fingerprint", "seeded_feed"]

_CHANGED = 1e-3
"""Fractions of the crop. The same file on the same kind of processor gives the recorded digits, 1e-6; processors that
round INT8 otherwise differ by some steps, which the contract's wider tolerance allows."""


@dataclass(frozen=True, slots=True)
class FingerprintCheck:
    """A file's answer to the seeded image.

    Attributes:
        recorded: What the exporter saw, the network's raw output.
        found: What it gives now.
        side: Pixels to a unit of the crop: 1 where the output is fractions.
        tolerance: What the contract allows a device, in the output's unit.
    """

    recorded: NDArray[np.float64]
    found: NDArray[np.float64]
    side: float
    tolerance: float

    @property
    def difference(self) -> float:
        """Largest difference of a coordinate, fractions of the crop."""
        return float(np.abs(self.found - self.recorded).max() / self.side)

    @property
    def changed(self) -> bool:
        """Whether that is more than the same file would show on the same kind of processor."""
        return not self.difference <= _CHANGED

    @property
    def beyond_tolerance(self) -> bool:
        """Whether that is more than the contract allows any device."""
        return not self.difference * self.side <= self.tolerance

    def findings(self) -> Iterator[Finding]:
        """Say so; proven where the contract's own tolerance is exceeded."""
        if self.changed:
            hint = "" if self.beyond_tolerance else ", or this processor rounds INT8 otherwise than the exporter's"
            sentence = (
                "the file doesn't compute what its exporter saw (fingerprint off by "
                f"{self.difference:.2g} of the crop): its weights were changed after conversion{hint}"
            )
            yield Finding(
                Suspicion("weights", sentence, {"fingerprint": self.difference}), proven=self.beyond_tolerance
            )


def check_fingerprint(model: ProofModel) -> FingerprintCheck | None:
    """Run an ONNX file on its seeded image; None for checkpoints, and for files that carry no fingerprint.

    Raises:
        ConvertError: onnxruntime refuses the model.
    """
    seen = model.contract.fingerprint
    if seen is None or not model.kind.startswith(("onnx", "end-to-end")):
        return None
    session = open_model(load_onnx(Path(model.path)))
    feed = seeded_feed([value.name for value in session.get_inputs()], model.contract)
    found = np.asarray(session.run(None, feed)[0], np.float64).ravel()
    recorded = np.array(seen.output, np.float64)
    if found.shape != recorded.shape:
        return None
    size = model.contract.input_size
    box = np.array([[0, 0, size, size]], np.float64)
    side = float(crop_windows(box, model.contract.crop.margin).sizes[0]) if model.contract.end_to_end else 1.0
    return FingerprintCheck(recorded, found, side, seen.tolerance)


def seeded_feed(inputs: Sequence[str], contract: Contract) -> dict[str, NDArray[Any]]:
    """Make what the exporter fed: the seeded image, for an end-to-end graph with a box around the whole of it.

    Args:
        inputs: Names of the graph's inputs: the crops, or photograph and boxes.
        contract: The file's own.
    """
    size = contract.input_size
    image = fingerprint_image(0 if contract.fingerprint is None else contract.fingerprint.seed, size)
    if contract.end_to_end:
        return {inputs[0]: image, inputs[1]: np.array([[0, 0, size, size]], np.float32)}
    return {inputs[0]: prepare_input(image[None], contract)}
