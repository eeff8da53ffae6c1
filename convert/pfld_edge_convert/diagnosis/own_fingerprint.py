"""Whether a file still computes what its exporter saw."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_calib.proof import ProofModel, Suspicion
from pfld_edge_convert.diagnosis.finding import Finding
from pfld_edge_convert.inference import open_model
from pfld_edge_convert.onnx_file import load_onnx
from pfld_edge_runtime import Contract, crop_windows, fingerprint_image, prepare_input

__all__ = ["FingerprintCheck", "check_fingerprint", "seeded_answer"]

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

    def findings(self) -> Iterator[Finding]:
        """Say so; proven where the contract's own tolerance is exceeded."""
        if self.changed:
            beyond = not self.difference * self.side <= self.tolerance
            hint = "" if beyond else ", or this processor rounds INT8 otherwise than the exporter's"
            sentence = (
                "the file doesn't compute what its exporter saw (fingerprint off by "
                f"{self.difference:.2g} of the crop): its weights were changed after conversion{hint}"
            )
            yield Finding(Suspicion("weights", sentence, {"fingerprint": self.difference}), proven=beyond)


def check_fingerprint(model: ProofModel) -> FingerprintCheck | None:
    """Run an ONNX file on its seeded image; None for checkpoints, and for files that carry no fingerprint."""
    seen = model.contract.fingerprint
    if seen is None or not model.kind.startswith(("onnx", "end-to-end")):
        return None
    found = seeded_answer(load_onnx(Path(model.path)), model.contract)
    recorded = np.array(seen.output, np.float64)
    if found.shape != recorded.shape:
        return None
    size = model.contract.input_size
    box = np.array([[0, 0, size, size]], np.float64)
    side = float(crop_windows(box, model.contract.crop.margin).sizes[0]) if model.contract.end_to_end else 1.0
    return FingerprintCheck(recorded, found, side, seen.tolerance)


def seeded_answer(model: onnx.ModelProto, contract: Contract) -> NDArray[np.float64]:
    """Run a network on the seeded image of its contract's fingerprint.

    Args:
        model: A plain network or an end-to-end graph.
        contract: Its own, with a fingerprint.

    Returns:
        ``(2 P,)`` its raw output.

    Raises:
        ConvertError: onnxruntime refuses the model.
    """
    seed = 0 if contract.fingerprint is None else contract.fingerprint.seed
    image, session = fingerprint_image(seed, contract.input_size), open_model(model)
    names = [value.name for value in session.get_inputs()]
    if contract.end_to_end:
        box = np.array([[0, 0, contract.input_size, contract.input_size]], np.float32)
        feed = dict(zip(names, (image, box), strict=True))
    else:
        feed = {names[0]: prepare_input(image[None], contract)}
    return np.asarray(session.run(None, feed)[0], np.float64).ravel()
