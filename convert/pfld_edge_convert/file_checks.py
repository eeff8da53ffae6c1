"""Checks of a file by itself: whether its fingerprint still holds, and which INT8 scale is wrong if it doesn't."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_calib import Face, cut_faces
from pfld_edge_calib.evaluation import LikelyCause
from pfld_edge_convert.inference import open_model
from pfld_edge_convert.model_file import load_onnx
from pfld_edge_runtime import LandmarkModel, crop_windows, fingerprint_image, prepare_input

_CHANGED = 1e-3
"""Fractions of the crop, of INT8 files. The same file on the same kind of processor gives the recorded digits, 1e-6;
processors that round INT8 otherwise differ by some steps, which the contract's wider tolerance allows."""

_ERRORS = (*(step / 200 for step in range(1, 21)), 0.125, 0.15, 0.2, 0.25, 0.5)
"""Relative errors that every scale is tried for, both ways."""
_MULTIPLES = (2.0, 3.0, 4.0, 10.0)
"""And how many times too large or too small."""

_FOLLOWED = 8
_NEARBY = (np.linspace(-0.004, 0.004, 49), np.linspace(-0.0002, 0.0002, 25))
"""Relative steps around the best, then around the best of these: the answer is rugged, and right in a narrow place."""
_LEFT = 0.2
"""Share of the difference that may be left; of the true scale next to nothing is, of any other rarely below a third."""
_LEAST = 0.003
"""Relative error of a scale that is worth a word; smaller ones are rounding."""

_PLACES = {
    "QLinearConv": {1: "what it reads", 4: "the weights", 6: "what it makes"},
    "QGemm": {1: "what it reads", 4: "the weights", 7: "what it makes"},
    "QLinearMatMul": {1: "what it reads", 4: "the weights", 6: "what it makes"},
}

Trial = tuple[float, float, str]
"""What is left of the difference, by which factor the scale is taken to be off, and its name."""


@dataclass(frozen=True, slots=True)
class FingerprintCheck:
    """A file's raw output for the seeded image: as the exporter recorded it, and now.

    `side` is pixels to a unit of the crop, 1 where the output is fractions; `tolerance` is in the output's unit.
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
        """Whether that is more than the same file shows on the same kind of processor, or more than is allowed."""
        return self.beyond_tolerance or not self.difference <= _CHANGED

    @property
    def beyond_tolerance(self) -> bool:
        """Whether that is more than the contract allows any device."""
        return not self.difference * self.side <= self.tolerance

    def causes(self) -> Iterator[LikelyCause]:
        """Say so; proven where the contract's own tolerance is exceeded."""
        if self.changed:
            hint = "" if self.beyond_tolerance else ", or this processor rounds INT8 otherwise than the exporter's"
            sentence = (
                "the file doesn't compute what its exporter saw (fingerprint off by "
                f"{self.difference:.2g} of the crop): its weights were changed after conversion{hint}"
            )
            yield LikelyCause("weights", sentence, {"fingerprint": self.difference}, self.beyond_tolerance)


def check_fingerprint(model: LandmarkModel) -> FingerprintCheck | None:
    """Run an ONNX file on its seeded image; None for checkpoints, and for files that carry no fingerprint."""
    seen, size = model.contract.fingerprint, model.contract.input_size
    if seen is None or not model.kind.startswith(("onnx", "end-to-end")):
        return None
    image, side = fingerprint_image(seen.seed, size), 1.0
    if model.contract.end_to_end:
        box = np.array([[0, 0, size, size]], np.float64)
        found, side = model.locate(image, box), float(crop_windows(box, model.contract.crop.margin).sizes[0])
    else:
        found = model.predict(image[None])
    recorded = np.array(seen.output, np.float64)
    if found.size != recorded.size:
        return None
    return FingerprintCheck(recorded, found.astype(np.float64).ravel(), side, seen.tolerance)


def wrong_scale(
    model: LandmarkModel, check: FingerprintCheck | None, faces: Sequence[Face], expected: NDArray[np.floating]
) -> Iterator[LikelyCause]:
    """Try every scale with many errors: find the one which, undone, gives back what the network ought to answer.

    That is the recorded fingerprint where the file no longer gives it, otherwise the reference's landmarks. Small
    steps of rounding make the answer rugged, so that following its slope finds nothing; but one network that takes its
    scales as inputs tries thousands a second. The reference's landmarks of the faces are ``(N, P, 2)``, pixels.
    """
    trials = _trials(model, check, faces, expected)
    if trials is None:
        return
    best = sorted(trials.tried((name, factor) for name in trials.scales for factor in _factors()))[:_FOLLOWED]
    for steps in _NEARBY:
        near = trials.tried((name, factor * (1 + step)) for _, factor, name in best for step in steps.tolist())
        best = sorted([*best, *near])[:_FOLLOWED]
    left, factor, name = best[0]
    now = trials.distance({})
    if left <= _LEFT * now and abs(factor - 1) > _LEAST:
        right = "its landmarks are the checkpoint's"
        if check is not None and check.changed:
            right = "the file gives the fingerprint that its exporter saw"
        # The scale of what a layer reads and that of its weights count as a product: either may be the one.
        same = sorted({other for rest, by, other in best if rest <= 1.01 * left and by == factor} - {name})
        either = "".join(f" or {other!r} ({_use(trials.file, other)})" for other in same)
        sentence = (
            f"the INT8 scale {name!r} ({_use(trials.file, name)}){either} is off by {factor - 1:+.1%}: "
            f"divided by {factor:.4g}, {right}"
        )
        yield LikelyCause("scale", sentence, {"tensor": name, "factor": factor, "left": left / now})


def scale_names(model: onnx.ModelProto) -> list[str]:
    """Names of the constants that scale integers, in the order of the graph: floats that quantized operators read."""
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    prefixes = ("QLinear", "QGemm", "QuantizeLinear", "DequantizeLinear")
    quantized = [node for node in model.graph.node if node.op_type.startswith(prefixes)]
    return list(dict.fromkeys(name for node in quantized for name in node.input if name in floats))


@dataclass(frozen=True, slots=True)
class _Trials:
    """A file whose scales are inputs, what it is fed, and what it ought to answer."""

    file: onnx.ModelProto
    session: onnxruntime.InferenceSession
    feed: dict[str, NDArray[Any]]
    target: NDArray[np.float64]
    scales: dict[str, NDArray[np.float32]]

    def distance(self, changed: dict[str, NDArray[np.float32]]) -> float:
        """Between the answer with some scales changed, and what it ought to be."""
        answer = self.session.run(None, {**self.feed, **changed})[0].astype(np.float64).ravel()
        return float(np.linalg.norm(answer - self.target))

    def tried(self, factors: Iterable[tuple[str, float]]) -> Iterator[Trial]:
        """Undo a factor of each named scale."""
        for name, factor in factors:
            yield self.distance({name: np.asarray(self.scales[name] / np.float32(factor))}), factor, name


def _trials(
    model: LandmarkModel, check: FingerprintCheck | None, faces: Sequence[Face], expected: NDArray[np.floating]
) -> _Trials | None:
    if model.path is None:
        return None
    file, contract = load_onnx(model.path), model.contract
    names = scale_names(file)
    inputs = [value.name for value in file.graph.input if value.name not in names]
    if not names:
        return None
    if check is not None and check.changed:
        size, seen = contract.input_size, contract.fingerprint
        image = fingerprint_image(0 if seen is None else seen.seed, size)
        boxed = [image, np.array([[0, 0, size, size]], np.float32)]
        feed = dict(zip(inputs, boxed if contract.end_to_end else [prepare_input(image[None], contract)], strict=False))
        target = check.recorded
    elif contract.end_to_end or not faces:
        return None
    else:
        batch = next(iter(cut_faces(faces, contract)))
        feed = {inputs[0]: prepare_input(batch.crops, contract)}
        wanted = np.asarray(expected[: len(batch.faces)], np.float32)
        target = batch.windows.to_crop(wanted).astype(np.float64).ravel()
    values = {item.name: numpy_helper.to_array(item) for item in file.graph.initializer if item.name in names}
    # Constants that are inputs too are defaults, to be overridden (ONNX's IR, "Initializers", version 4).
    there = {value.name for value in file.graph.input}
    open_file = onnx.ModelProto()
    open_file.CopyFrom(file)
    open_file.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, values[name].shape)
        for name in names
        if name not in there
    )
    return _Trials(file, open_model(open_file), feed, target, {name: values[name] for name in names})


def _factors() -> list[float]:
    near = [1 + sign * error for error in _ERRORS for sign in (1, -1)]
    return [*near, *_MULTIPLES, *(1 / multiple for multiple in _MULTIPLES[1:])]


def _use(file: onnx.ModelProto, name: str) -> str:
    """Which layer reads it, and for what."""
    node = next(node for node in file.graph.node if name in node.input)
    place = _PLACES.get(node.op_type, {}).get(list(node.input).index(name), "an operand")
    return f"of {place} in {node.op_type} {node.name or node.output[0]!r}"
