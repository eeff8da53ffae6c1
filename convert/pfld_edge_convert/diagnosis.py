"""Likely causes of a deviation from the reference: order, colours, INT8 scales, fingerprint."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_calib import Face, cut_faces
from pfld_edge_calib.evaluation.drift import Verdict
from pfld_edge_calib.evaluation.verification import LikelyCause, ModelResult, Verification
from pfld_edge_calib.find_landmarks import find_landmarks
from pfld_edge_convert.landmark_models import EndToEndModel
from pfld_edge_convert.model_file import copied, load_onnx, open_model
from pfld_edge_runtime import LandmarkModel, LandmarkScheme, crop_windows, fingerprint_image, prepare_input
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Int64Array, Uint8Array

_CHANGED = 1e-3
"""Difference from the fingerprint, fractions of the crop, above which an INT8 file was changed, or runs on a processor
that rounds otherwise: the same processor gives the recorded output to 1e-6."""

_ERRORS = (*(step / 200 for step in range(1, 21)), 0.125, 0.15, 0.2, 0.25, 0.5)
_FACTORS = [1 + sign * error for error in _ERRORS for sign in (1, -1)]
_FACTORS += [2.0, 3.0, 4.0, 10.0, 1 / 3, 1 / 4, 1 / 10]
"""By which each scale is taken to be off."""

_FOLLOWED = 8
_NEARBY = (np.linspace(-0.004, 0.004, 49), np.linspace(-0.0002, 0.0002, 25))
"""How many of the best scales are refined, and the relative steps around their factors in two rounds."""

_SAME = 0.001
"""Share of the difference under which two scales undo it alike: float32 rounds their products and quotients."""

_LEFT = 0.2
"""Largest share of the difference that undoing the right factor leaves; other scales leave a third and more."""

_LEAST = 0.003
"""Least relative error of a scale that is reported; smaller ones are rounding."""

_PLACES = {
    "QLinearConv": {1: "what it reads", 4: "the weights", 6: "what it makes"},
    "QGemm": {1: "what it reads", 4: "the weights", 7: "what it makes"},
    "QLinearMatMul": {1: "what it reads", 4: "the weights", 6: "what it makes"},
}

_ScaleTrial = tuple[float, float, str]
"""What is left of the difference, by which factor the scale is taken to be off, and its name."""

Points = NDArray[np.floating]

_InputTrial = tuple[str, LandmarkModel, str]
"""A cause, the model fed otherwise, and what it means if that agrees with the reference."""

_FLOAT_DEVIATION = 1e-4
"""Of one landmark, in eye distances. Float files differ from their checkpoint by some 1e-6."""

_INT8_DEVIATION = 0.014
"""Mean, in eye distances. INT8 costs less than 0.01; two networks that were trained apart deviate by 0.016 at least
(pfld-edge-s and pfld-edge-m on the bundled portraits)."""

_FLOAT_FILES = ("fused torch", "onnx fp32", "end-to-end fp32")
_CONVERTED = 1e-3
"""Largest mean deviation of these from their checkpoint, in eye distances. Other checkpoints count as INT8 files."""

_AGREES = 1 / 2
"""Largest share of the deviation that may be left where a cause is undone."""

_FACES, _SCALE_FACES = 24, 8
"""Faces on which causes are tried, and the many errors of INT8 scales."""


@dataclass(frozen=True, slots=True)
class FingerprintCheck:
    """A file's raw output for the seeded image: as the exporter recorded it, and now.

    `side` is pixels to a unit of the crop, 1 where the output is fractions; `tolerance` is in the output's unit.
    """

    recorded: Float64Array
    found: Float64Array
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
    """Try every scale with many factors: find the one which, undone, restores the expected output.

    That is the recorded fingerprint where the file no longer gives it, otherwise the reference's landmarks
    ``(N, P, 2)`` of the faces, pixels. Rounding makes the output no smooth function of a scale, so that all factors are
    tried, on a network that takes its scales as inputs.
    """
    trials = _trials(model, check, faces, expected)
    if trials is None:
        return
    best = _best_of_each(trials.tried((name, factor) for name in trials.scales for factor in _FACTORS))
    for steps in _NEARBY:
        near = trials.tried((name, factor * (1 + step)) for _, factor, name in best for step in steps.tolist())
        best = _best_of_each([*best, *near])
    left, factor, name = best[0]
    now = trials.distance({})
    if left <= _LEFT * now and abs(factor - 1) > _LEAST:
        right = "its landmarks are the checkpoint's"
        if check is not None and check.changed:
            right = "the file gives the fingerprint that its exporter saw"
        # The scales of what a layer reads and of its weights count as a product, over that of what it makes: any may be
        # the one.
        same = [(by, other) for rest, by, other in best if rest <= max(1.01 * left, _SAME * now)]
        either = " or ".join(
            f"{other!r} ({_use(trials.file, other)}) is off by {by - 1:+.1%}, divided by {by:.4g}" for by, other in same
        )
        sentence = f"the INT8 scale {either}: then {right}"
        yield LikelyCause("scale", sentence, {"tensor": name, "factor": factor, "left": left / now})


def _best_of_each(tried: Iterable[_ScaleTrial]) -> list[_ScaleTrial]:
    """Of each scale the factor that leaves least, the `_FOLLOWED` best scales first."""
    best: dict[str, _ScaleTrial] = {}
    for trial in sorted(tried):
        best.setdefault(trial[2], trial)
    return list(best.values())[:_FOLLOWED]


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
    target: Float64Array
    scales: dict[str, Float32Array]

    def distance(self, changed: dict[str, Float32Array]) -> float:
        """Between the answer with some scales changed, and what it ought to be."""
        answer = self.session.run(None, {**self.feed, **changed})[0].astype(np.float64).ravel()
        return float(np.linalg.norm(answer - self.target))

    def tried(self, factors: Iterable[tuple[str, float]]) -> Iterator[_ScaleTrial]:
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
    open_file = copied(file)
    open_file.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, values[name].shape)
        for name in names
        if name not in there
    )
    return _Trials(file, open_model(open_file), feed, target, {name: values[name] for name in names})


def _use(file: onnx.ModelProto, name: str) -> str:
    """Which layer reads it, and for what."""
    node = next(node for node in file.graph.node if name in node.input)
    place = _PLACES.get(node.op_type, {}).get(list(node.input).index(name), "an operand")
    return f"of {place} in {node.op_type} {node.name or node.output[0]!r}"


def diagnosed(
    record: Verification, models: Sequence[LandmarkModel], starting: Callable[[str], object] | None = None
) -> Verification:
    """Add likely causes to every network that deviates, and fail those that are not the reference's conversion.

    These are files with a proven cause, files whose contract differs from the reference's, and files whose landmarks
    are further from the reference's than any conversion moves them. A file within the budget by chance is still not the
    file that was meant. A network that agrees with the reference costs one run on the seeded image.

    The reference is the record's first network; `starting` is called with the name of each one that is looked into.
    """
    results = [record.models[0]]
    for result, model in zip(record.models[1:], models[1:], strict=True):
        check = check_fingerprint(model)
        differences = _contract_differences(models[0], model)
        if differences or _deviates(result, check):
            if starting is not None and result.verdict is not Verdict.INCONCLUSIVE:
                starting(result.name)
            cause = next(_causes(record, result, model, check), None)
            result = _judged(result, cause, differences)
        results.append(result)
    return replace(record, models=tuple(results))


def _deviates(result: ModelResult, check: FingerprintCheck | None) -> bool:
    if result.deviation is None:
        return False
    if not np.isfinite(result.deviation.mean) or (check is not None and check.changed):
        return True
    if not result.kind.endswith("int8"):
        return result.deviation.largest > _FLOAT_DEVIATION
    return result.deviation.mean > _INT8_DEVIATION or result.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)


def _contract_differences(reference: LandmarkModel, model: LandmarkModel) -> list[str]:
    """Fields in which the contracts feed the networks differently, or name different networks."""
    mine, theirs = model.contract, reference.contract
    names = ["input_size", "crop"]
    if not model.assumed and not reference.assumed:
        names.append("model")
    if not mine.end_to_end and not theirs.end_to_end:
        names.append("color_order")  # an end-to-end graph takes RGB, whatever is inside
    if mine.input_dtype == theirs.input_dtype == "float32":
        names += ["mean", "scale"]
    pairs = [(name, getattr(mine, name), getattr(theirs, name)) for name in names]
    return [f"{name} is {own}, not {other}" for name, own, other in pairs if own != other]


def _causes(
    record: Verification, result: ModelResult, model: LandmarkModel, check: FingerprintCheck | None
) -> Iterator[LikelyCause]:
    """From the cheapest check to the dearest; what only the fingerprint shows comes last."""
    known = np.isfinite(result.landmarks).all(axis=(1, 2)) & np.isfinite(record.models[0].landmarks).all(axis=(1, 2))
    rows = np.flatnonzero(known)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(_FACES, len(rows))).astype(int))]
    found, expected = result.landmarks[rows], record.models[0].landmarks[rows]
    some = record.recorded_faces(rows)
    if len(rows):
        first, second = (record.truth[rows, point].astype(np.float64) for point in record.scheme.normalizing_points)
        eyes = np.linalg.norm(first - second, axis=1, keepdims=True)
        yield from _other_order(found, expected, eyes, record.scheme)
        yield from _other_input(model, some, found, expected, eyes)
    far = result.verdict is Verdict.FAIL or (result.deviation is not None and result.deviation.mean > _INT8_DEVIATION)
    if model.kind.endswith("int8") and (far or (check is not None and check.changed)):
        yield from wrong_scale(model, check, some[:_SCALE_FACES], expected[:_SCALE_FACES])
    if check is not None:
        yield from check.causes()


def _other_order(found: Points, expected: Points, eyes: Points, scheme: LandmarkScheme) -> Iterator[LikelyCause]:
    """Assign each landmark to the reference's nearest: a permutation after which they agree is the cause."""
    from scipy.optimize import linear_sum_assignment

    apart = np.zeros((found.shape[1],) * 2)
    for points, others, eye in zip(found.astype(np.float64), expected.astype(np.float64), eyes, strict=True):
        apart += np.linalg.norm(points[:, None] - others[None], axis=2) / eye / len(eyes)
    order = linear_sum_assignment(apart)[1]
    before, after = float(np.diag(apart).mean()), float(apart[np.arange(len(order)), order].mean())
    moved = np.flatnonzero(order != np.arange(len(order)))
    if len(moved) and after <= _AGREES * before:
        sentence = f"the landmarks are in another order: {_described(order, moved, scheme)}"
        spelled = " ".join(map(str, order.tolist()))
        yield LikelyCause("order", sentence, {"deviation": before, "reordered": after, "order": spelled})


def _described(order: Int64Array, moved: Int64Array, scheme: LandmarkScheme) -> str:
    count = len(order)
    if scheme.has_mirror and np.array_equal(order, scheme.mirror):
        return "left and right are exchanged"
    shift = int(order[0])
    if np.array_equal(order, (np.arange(count) + shift) % count):
        return f"its point i is point (i + {shift}) % {count} of the scheme {scheme.name!r}"
    pairs = ", ".join(f"{row} is {order[row]} ({scheme.names[order[row]]})" for row in moved[:4].tolist())
    return f"{len(moved)} of {count} points are elsewhere: its point {pairs}{', ...' if len(moved) > 4 else ''}"


def _other_input(
    model: LandmarkModel, faces: Sequence[Face], found: Points, expected: Points, eyes: Points
) -> Iterator[LikelyCause]:
    """Try the other order of colours, and exchanged coordinates."""

    def deviation(landmarks: Points) -> float:
        return float((np.linalg.norm(landmarks.astype(np.float64) - expected, axis=2) / eyes).mean())

    before = deviation(found)
    trials = [_colors(model)]
    if not model.contract.end_to_end:
        turned = LandmarkModel(model.contract, lambda crops: np.ascontiguousarray(model.predict(crops)[:, :, ::-1]))
        told = "x and y are exchanged: with each pair turned round it agrees with the checkpoint"
        trials.append(("order", turned, told))
    answers = find_landmarks([trial for _, trial, _ in trials], faces)
    after, best = min(((deviation(answer), i) for i, answer in enumerate(answers)), key=lambda pair: pair[0])
    if after <= _AGREES * before:
        cause, _, told = trials[best]
        sentence = f"{told} (mean deviation {after:.2g} instead of {before:.2g} of the eye distance)"
        yield LikelyCause(cause, sentence, {"deviation": before, "fed otherwise": after})


def _colors(model: LandmarkModel) -> _InputTrial:
    def turned(pictures: Uint8Array) -> Uint8Array:
        return np.ascontiguousarray(pictures[..., ::-1])

    said = model.contract.color_order
    exchanged = LandmarkModel(model.contract, lambda crops: model.predict(turned(crops)))
    if isinstance(model, EndToEndModel):
        exchanged = EndToEndModel(model.contract, lambda photo, boxes: model.function(turned(photo), boxes))
    other = "BGR" if said == "rgb" else "RGB"
    told = f"the file says {said.upper()}, but fed {other} it agrees with the checkpoint"
    return "color", exchanged, f"RGB and BGR are exchanged: {told}"


def _judged(result: ModelResult, cause: LikelyCause | None, differences: Sequence[str]) -> ModelResult:
    """Add the cause; fail the network where it is not the reference's conversion."""
    result = result if cause is None else replace(result, likely_causes=(cause,))
    if result.verdict is Verdict.FAIL:
        return result
    mean = np.nan if result.deviation is None else result.deviation.mean
    if differences:
        reason = f"its contract is not the checkpoint's: {'; '.join(differences)}"
    elif cause is not None and cause.proven:
        reason = "the file is not right: see the likely cause"
    elif not mean <= (_CONVERTED if result.kind in _FLOAT_FILES else _INT8_DEVIATION):
        reason = (
            f"it is another network: on average landmarks lie {mean:.3g} of the eye distance from the checkpoint's, "
            "further than a conversion moves them"
        )
    else:
        return result
    return replace(result, verdict=Verdict.FAIL, reason=f"{result.reason}, but {reason}" if result.reason else reason)
