"""The INT8 part of a conversion: quantize, rank the layers, hold the drift budget, time the result."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_calib import nme_per_face
from pfld_edge_calib.evaluation.drift import Verdict, paired_drift
from pfld_edge_convert.benchmark import timing
from pfld_edge_convert.errors import CalibrationError, ConvertError, FellShortError
from pfld_edge_convert.formats.qoperator import float_operators
from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.quantization import mixed_precision
from pfld_edge_convert.quantization.quantizer import Quantized, Quantizer
from pfld_edge_convert.quantization.settings import QuantizationSettings, target_named
from pfld_edge_runtime import Contract, prepare_input
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array, Uint8Array

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Shows progress: a title and a number of steps to a context that gives the function which counts them."""

_COST_FACES = 48
"""Held-back faces on which the cost of each layer is measured."""

_SPEED_PRECISION = 0.1
"""Of the ratio of INT8 to fp32 times; wider than that of `bench`, as it only has to tell which is faster."""


def _no_progress(_title: str, _total: int) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(lambda _count: None)


@dataclass(frozen=True, slots=True)
class LabelledCrops:
    """Labelled faces that nothing was calibrated on.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8.
        landmarks: ``(N, P, 2)`` true points, fractions of the crop.
        large_pose: ``(N,)`` which faces have a large pose.
        photographs: ``(N,)`` integers: faces of one photograph share one.
    """

    crops: Uint8Array
    landmarks: Float32Array
    large_pose: BoolArray
    photographs: NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Int8Request:
    """What an INT8 file is to be made from, and what is asked of it.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8 calibration faces in the contract's colour order.
        source: What they are, for the contract, e.g. ``256 faces of WFLW, seed 0``.
        settings: How to quantize.
        max_drift: Largest relative increase of the NME on `labelled`, at the upper end of its 95 % interval; any where
            None.
        labelled: Needed for `max_drift`.
        allow_slower: Accept a network that is slower than the float one on this machine.
        progress: Shows progress.
        max_deviation: Largest mean landmark distance from the float network on held-back calibration faces, in eye
            distances, at the upper end of its 95 % interval; any where None.
        finetune: Minutes of fine-tuning, of each network that a budget tries.
        batches: Faces to fine-tune on, ``(n, S, S, 3)`` uint8 each, in place of varied calibration faces.
        formats: Keys of `pfld_edge_convert.formats.FORMATS`: the files that are written, all of one quantization.
        unusual: Makes more crops where the calibration faces show few people, see `Quantizer`.
    """

    crops: Uint8Array
    source: str
    settings: QuantizationSettings = field(default_factory=QuantizationSettings)
    max_drift: float | None = None
    labelled: LabelledCrops | None = None
    allow_slower: bool = False
    progress: Progress = _no_progress
    formats: tuple[str, ...] = ("qoperator",)
    max_deviation: float | None = None
    finetune: float = 0.0
    batches: Iterable[Uint8Array] | None = None
    unusual: Callable[[], Uint8Array] | None = None


@dataclass(frozen=True, slots=True)
class Int8Outcome:
    """An INT8 network, and what is known of it.

    Attributes:
        quantized: The network.
        contract: Its contract, without fingerprint.
        report: Of its layers; the file carries it.
        coverage: What onnxruntime runs in 8 bits.
        times: Of one face, one thread: ``fp32``, ``int8``, and, where some layers stayed in float,
            ``int8, no layer in float``.
        speed: How ``int8`` compares with ``fp32``.
        budget: What came of `max_drift` or `max_deviation`.
        deviation: Mean landmark distance from the float network on held-back calibration faces, in eye distances.
    """

    quantized: Quantized
    contract: Contract
    report: mixed_precision.QuantizationReport
    coverage: mixed_precision.Coverage
    times: dict[str, timing.Times]
    speed: timing.Judgement
    budget: mixed_precision.DriftBudget | None
    deviation: float


def make_int8(model: onnx.ModelProto, contract: Contract, request: Int8Request) -> Int8Outcome:
    """Make an INT8 network of an optimized float network that `contract` describes.

    Raises:
        CalibrationError: The faces can't be used, or a budget was given without labelled faces.
        ConvertError: No layer can compute in INT8.
        FellShortError: The budget can't be met but by every layer in float, or the network is slower than the float
            one on a machine that it is meant for.
    """
    if request.max_drift is not None and request.labelled is None:
        raise CalibrationError("a largest drift can only be held on faces with known landmarks: give labelled faces")
    quantizer = Quantizer(model, request.crops, contract, request.settings, request.unusual)
    if not quantizer.layers:
        kinds = ", ".join(dict.fromkeys(node.op_type for node in model.graph.node))
        raise ConvertError(
            "no layer can compute in INT8: that takes a Conv of two spatial axes or a Gemm with constant weights, and "
            f"the network has {kinds}; convert it without INT8"
        )

    def make(float_layers: tuple[str, ...]) -> Quantized:
        title = f"INT8, {len(float_layers)} layers in float" if float_layers else "INT8"
        with request.progress(title, len(quantizer.layers)) as advance:
            quantized = quantizer.make(float_layers, advance)
        if not request.finetune:
            return quantized
        seconds = 60 * request.finetune
        with request.progress("fine-tuning, seconds", math.ceil(seconds)) as advance:
            return quantizer.finetuned(quantized, _share_of(seconds, advance), request.batches)

    everything = quantized = make(())
    faces = quantizer.held_back[:_COST_FACES]
    scheme = contract.landmarks
    with request.progress("cost of each layer", len(quantizer.layers)) as advance:
        inputs = everything.float_input(faces)
        costs = mixed_precision.layer_costs(everything.plan, inputs, scheme.normalizing_points, scheme.mirror, advance)
    budget = None
    drift, allowed = _deviation_measure(quantizer), request.max_deviation
    if request.max_drift is not None and request.labelled is not None:
        drift, allowed = _drift_measure(request.labelled, model, contract), request.max_drift
    if allowed is not None:
        quantized, budget = mixed_precision.search_float_layers(
            lambda names: make(names) if names else everything, costs, drift, allowed
        )
        _require_budget(budget, "deviation" if request.max_drift is None else "drift", len(quantizer.layers))
    coverage = mixed_precision.fusion_coverage(quantized.model)
    _require_float(coverage, quantized.float_layers)
    timed = {"fp32": model, "int8": quantized.model}
    if quantized is not everything:
        timed["int8, no layer in float"] = everything.model
    times = mixed_precision.face_times(timed)
    ratio = timing.ratio_of_medians(times["int8"].wall, times["fp32"].wall)
    speed = timing.judge(times["int8"], times["fp32"], ratio, _SPEED_PRECISION)
    if speed.verdict is timing.SpeedVerdict.SLOWER and not request.allow_slower:
        _require_foreign(request.settings.target, times)
    operators, in_float = float_operators(quantized.plan), quantized.float_layers
    report = mixed_precision.QuantizationReport(
        quantized.method, quantized.tried, tuple(costs), in_float, len(faces), operators
    )
    mixed_precision.attach_report(quantized.model, report)
    # The NME was measured on the float network.
    int8_contract = quantized.contract.replace(calibration=request.source, nme=None, nme_data="")
    deviation = float(quantizer.deviations(quantized).mean())
    return Int8Outcome(quantized, int8_contract, report, coverage, times, speed, budget, deviation)


def _share_of(seconds: float, advance: Callable[[int], object]) -> Callable[[], float]:
    """Tells the share of some seconds that has passed since now, and shows it."""
    start, shown = time.monotonic(), 0

    def elapsed() -> float:
        nonlocal shown
        passed = time.monotonic() - start
        advance(int(passed) - shown)
        shown = int(passed)
        return passed / seconds

    return elapsed


def _deviation_measure(quantizer: Quantizer) -> Callable[[Quantized], mixed_precision.FaceDrift]:
    """Measures the deviation as if it were a drift, so that one search serves both."""

    def deviation(quantized: Quantized) -> mixed_precision.FaceDrift:
        moved = quantizer.deviations(quantized)
        found = paired_drift(1 + moved, np.ones(len(moved)), np.arange(len(moved)))
        return mixed_precision.FaceDrift(found, replace(found, faces=0))

    return deviation


def _drift_measure(
    labelled: LabelledCrops, model: onnx.ModelProto, contract: Contract
) -> Callable[[Quantized], mixed_precision.FaceDrift]:
    truth = labelled.landmarks
    every = np.ones(len(truth), bool)
    large_pose = labelled.large_pose if labelled.large_pose.any() else every

    def nmes(network: onnx.ModelProto, fed: Contract) -> Float64Array:
        found = run_model(network, prepare_input(labelled.crops, fed))
        return nme_per_face(found.reshape(truth.shape), truth, contract.landmarks.normalizing_points)

    before = nmes(model, contract)

    def drift(quantized: Quantized) -> mixed_precision.FaceDrift:
        after = nmes(quantized.model, quantized.contract)
        masks = (every, large_pose)
        return mixed_precision.FaceDrift(
            *(paired_drift(after[some], before[some], labelled.photographs[some]) for some in masks)
        )

    return drift


def _require_float(coverage: mixed_precision.Coverage, float_layers: tuple[str, ...]) -> None:
    """What was measured in float must not be quantized by onnxruntime's own optimizer when the file is opened."""
    if len(coverage.floating) < len(float_layers):
        raise ConvertError(
            f"{len(float_layers)} layers should stay in float, but this onnxruntime runs {len(coverage.floating)} so: "
            "report it to pfld-edge with the version of onnxruntime, and convert without --max-drift meanwhile"
        )


def _require_budget(budget: mixed_precision.DriftBudget, measure: str, layers: int) -> None:
    if not budget.holds:
        verdict, reason = budget.drifts[-1].judged(budget.allowed)
        held = f"the {measure} can't be held to {budget.allowed:.2%}"
        word = "inconclusive" if verdict is Verdict.INCONCLUSIVE else held
        raise FellShortError(
            f"{word}: {budget.drifts[0].all.value:+.2%} with every layer in INT8; at best, with "
            f"{len(budget.float_layers)} layers in float, {reason}; calibrate on more faces, judge on more (--data), "
            "or allow more"
        )
    if len(budget.float_layers) == layers:
        raise FellShortError(
            f"the {measure} is held to {budget.allowed:.2%} only with every layer in float: allow more, or ship the "
            "float file"
        )


def _require_foreign(target: str, times: dict[str, timing.Times]) -> None:
    """A slower network is kept for other processors: timings of this machine say nothing about them."""
    if target_named(target).is_host():
        raise FellShortError(
            f"the INT8 network takes {times['int8'].milliseconds:.2f} ms a face on this machine, the float one "
            f"{times['fp32'].milliseconds:.2f} ms; keep it with --allow-slower, or ship the float file"
        )
