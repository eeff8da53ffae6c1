"""Which scale of an INT8 file is off, and by how much."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from pfld_edge_calib import Face, cut_faces
from pfld_edge_calib.proof import ProofModel, Suspicion
from pfld_edge_convert.diagnosis.finding import AGREES, Finding
from pfld_edge_convert.diagnosis.own_fingerprint import FingerprintCheck, seeded_answer
from pfld_edge_convert.inference import run_model
from pfld_edge_convert.onnx_file import load_onnx
from pfld_edge_runtime import prepare_input

__all__ = ["scale_names", "wrong_scale"]

Vector = NDArray[np.float64]

_STEP = 1.02
_CANDIDATES = 6
_REFINEMENTS = 4
_LEAST = 0.003
"""Relative error of a scale that is worth a word; smaller ones are rounding."""

_PLACES = {
    "QLinearConv": {1: "what it reads", 4: "its weights", 6: "what it makes"},
    "QGemm": {1: "what it reads", 4: "its weights", 7: "what it makes"},
    "QLinearMatMul": {1: "what it reads", 4: "its weights", 6: "what it makes"},
}


@dataclass(frozen=True, slots=True)
class _Goal:
    """What the network ought to answer, and how to ask it."""

    answer: Callable[[onnx.ModelProto], Vector]
    target: Vector


def wrong_scale(
    model: ProofModel, check: FingerprintCheck | None, faces: Sequence[Face], expected: NDArray[np.floating]
) -> Iterator[Finding]:
    """Try every scale: find the one which, changed by some factor, gives back what the network ought to answer.

    That is the recorded fingerprint where the file no longer gives it, otherwise the reference's landmarks. To first
    order a scale moves the answer along one direction; the scales whose direction points from the answer to the goal
    are followed there.

    Args:
        model: An INT8 file.
        check: Its fingerprint.
        faces: Some faces.
        expected: ``(N, P, 2)`` the reference's landmarks of those, pixels.
    """
    file = load_onnx(Path(model.path))
    goal = _goal(model, check, faces, expected)
    names = scale_names(file)
    if goal is None or not names:
        return
    now = goal.answer(file)
    away = goal.target - now
    directions = {name: (goal.answer(_with_scale(file, name, _STEP)) - now) / (_STEP - 1) for name in names}
    ranked = sorted(names, key=lambda name: -_alignment(directions[name], away))[:_CANDIDATES]
    followed = [(*_followed(file, goal, name, directions[name], away), name) for name in ranked]
    left, factor, name = min(followed)
    if left <= AGREES * float(np.linalg.norm(away)) and abs(factor - 1) > _LEAST:
        off, share = 1 / factor - 1, left / float(np.linalg.norm(away))
        sentence = (
            f"the INT8 scale {name!r} ({_use(file, name)}) is off by {off:+.1%}: divided by {1 / factor:.4g}, "
            + (
                "the file gives the fingerprint that its exporter saw"
                if check is not None and check.changed
                else "the landmarks are the checkpoint's"
            )
        )
        yield Finding(Suspicion("scale", sentence, {"tensor": name, "factor": 1 / factor, "left": share}))


def scale_names(model: onnx.ModelProto) -> list[str]:
    """Names of the constants that scale integers, in the order of the graph: floats that quantized operators read."""
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    quantized = [node for node in model.graph.node if _is_quantized(node)]
    return list(dict.fromkeys(name for node in quantized for name in node.input if name in floats))


def _is_quantized(node: onnx.NodeProto) -> bool:
    return node.op_type.startswith(("QLinear", "QGemm")) or node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _goal(
    model: ProofModel, check: FingerprintCheck | None, faces: Sequence[Face], expected: NDArray[np.floating]
) -> _Goal | None:
    contract = model.contract
    if check is not None and check.changed:
        return _Goal(lambda file: seeded_answer(file, contract), check.recorded)
    if contract.end_to_end or not faces:
        return None
    batch = next(iter(cut_faces(faces, contract)))
    inputs = prepare_input(batch.crops, contract)
    target = batch.windows.to_crop(np.asarray(expected[: len(batch.faces)], np.float32))
    return _Goal(lambda file: run_model(file, inputs).astype(np.float64).ravel(), target.astype(np.float64).ravel())


def _followed(file: onnx.ModelProto, goal: _Goal, name: str, direction: Vector, away: Vector) -> tuple[float, float]:
    """Change one scale until the answer gets no nearer to the goal: the distance that is left, and the factor."""
    length = float(direction @ direction)
    best, factor = (float(np.linalg.norm(away)), 1.0), 1.0
    for _ in range(_REFINEMENTS if length > 0 else 0):
        factor = float(np.clip(factor + away @ direction / length, 0.1, 10))
        away = goal.target - goal.answer(_with_scale(file, name, factor))
        best = min(best, (float(np.linalg.norm(away)), factor))
    return best


def _alignment(direction: Vector, away: Vector) -> float:
    """Cosine, either way."""
    lengths = float(np.linalg.norm(direction) * np.linalg.norm(away))
    return abs(float(direction @ away)) / lengths if lengths > 0 else 0.0


def _with_scale(file: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(file)
    tensor = next(item for item in copy.graph.initializer if item.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor) * np.float32(factor)), name))
    return copy


def _use(file: onnx.ModelProto, name: str) -> str:
    """Which layer reads it, and for what."""
    node = next(node for node in file.graph.node if name in node.input)
    place = _PLACES.get(node.op_type, {}).get(list(node.input).index(name), "an operand")
    return f"of {place}, {node.op_type} {node.name or node.output[0]!r}"
