"""The INT8 part of a conversion: quantize, rank the layers, hold the budget, time the result."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_calib import nme_per_face
from pfld_edge_convert.errors import CalibrationError, ConvertError, FellShortError
from pfld_edge_convert.inference import run_model
from pfld_edge_convert.quantization.budget import Budget, FaceDrift, keep_within
from pfld_edge_convert.quantization.coverage import Coverage, fusion_coverage
from pfld_edge_convert.quantization.quantizer import Quantized, Quantizer
from pfld_edge_convert.quantization.report import QuantizationReport, attach_report
from pfld_edge_convert.quantization.sensitivity import layer_costs
from pfld_edge_convert.quantization.settings import QuantizationSettings
from pfld_edge_convert.quantization.timing import face_milliseconds
from pfld_edge_runtime import Contract, prepare_input

__all__ = ["Int8Outcome", "Int8Request", "JudgedFaces", "Watch", "make_int8"]

Crops = NDArray[np.uint8]

Watch = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Shows progress: a title and a number of steps to a context that gives the function which counts them."""

_COST_FACES = 48


@contextmanager
def _unwatched(_title: str, _total: int) -> Iterator[Callable[[int], object]]:
    yield lambda _count: None


@dataclass(frozen=True, slots=True)
class JudgedFaces:
    """Labelled faces that nothing was calibrated on.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8.
        landmarks: ``(N, P, 2)`` true points, fractions of the crop.
        turned: ``(N,)`` which faces turn most.
    """

    crops: Crops
    landmarks: NDArray[np.float32]
    turned: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Int8Request:
    """What an INT8 file is to be made from, and what is asked of it.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8 calibration faces in the contract's colour order.
        source: What they are, for the contract, e.g. ``256 faces of WFLW, seed 0``.
        settings: How to quantize.
        max_drift: Largest relative increase of the NME on `judged`; any where None.
        judged: Needed for `max_drift`.
        allow_slower: Accept a network that is slower than the float one on this machine.
        watch: Shows progress.
    """

    crops: Crops
    source: str
    settings: QuantizationSettings = field(default_factory=QuantizationSettings)
    max_drift: float | None = None
    judged: JudgedFaces | None = None
    allow_slower: bool = False
    watch: Watch = _unwatched


@dataclass(frozen=True, slots=True)
class Int8Outcome:
    """An INT8 network, and what is known of it.

    Attributes:
        quantized: The network.
        contract: Its contract, without fingerprint.
        report: What the file carries of its layers.
        coverage: What onnxruntime runs in 8 bits.
        milliseconds: Median of one face, one thread: ``fp32``, ``int8``, and, where some layers stayed in float,
            ``int8, no layer in float``.
        budget: What came of `max_drift`.
    """

    quantized: Quantized
    contract: Contract
    report: QuantizationReport
    coverage: Coverage
    milliseconds: dict[str, float]
    budget: Budget | None


def make_int8(model: onnx.ModelProto, contract: Contract, request: Int8Request) -> Int8Outcome:
    """Make an INT8 network that holds what was asked for.

    Args:
        model: Optimized float network; left as it is.
        contract: How it is fed.
        request: Faces, settings, budget.

    Raises:
        CalibrationError: The faces can't be used, or a budget was given without labelled faces.
        FellShortError: The budget can't be met, or the network is slower than the float one.
    """
    if request.max_drift is not None and request.judged is None:
        raise CalibrationError("a largest drift can only be held on faces with known landmarks: give labelled faces")
    quantizer = Quantizer(model, request.crops, contract, request.settings)

    def make(float_layers: tuple[str, ...]) -> Quantized:
        title = f"INT8, {len(float_layers)} layers in float" if float_layers else "INT8"
        with request.watch(title, len(quantizer.layers)) as advance:
            return quantizer.make(float_layers, advance)

    everything = quantized = make(())
    faces = quantizer.held_back[:_COST_FACES]
    scheme = contract.landmarks
    with request.watch("cost of each layer", len(quantizer.layers)) as advance:
        costs = layer_costs(
            everything.floating,
            everything.plan,
            everything.floating_input(faces),
            scheme.normalizing_points,
            scheme.mirror,
            advance,
        )
    budget = None
    if request.max_drift is not None and request.judged is not None:
        drift = _drift_on(request.judged, model, contract)
        quantized, budget = keep_within(
            lambda names: make(names) if names else everything, costs, drift, request.max_drift
        )
        _require_budget(budget)
    coverage = fusion_coverage(quantized.model)
    _require_float(coverage, quantized.float_layers)
    timed = {"fp32": model, "int8": quantized.model}
    if quantized is not everything:
        timed["int8, no layer in float"] = everything.model
    milliseconds = face_milliseconds(timed)
    if milliseconds["int8"] > milliseconds["fp32"] and not request.allow_slower:
        raise FellShortError(
            f"the INT8 network takes {milliseconds['int8']:.2f} ms a face on this machine, the float one "
            f"{milliseconds['fp32']:.2f} ms; keep it with --allow-slower, or ship the float file"
        )
    report = QuantizationReport(
        quantized.method, quantized.tried, tuple(costs), quantized.float_layers, faces=len(faces)
    )
    attach_report(quantized.model, report)
    # What was measured on the float network is not true of this one.
    promised = quantized.contract.replace(calibration=request.source, nme=None, nme_data="")
    return Int8Outcome(quantized, promised, report, coverage, milliseconds, budget)


def _drift_on(judged: JudgedFaces, model: onnx.ModelProto, contract: Contract) -> Callable[[Quantized], FaceDrift]:
    points = contract.landmarks.normalizing_points
    truth = judged.landmarks

    def nmes(network: onnx.ModelProto, fed: Contract) -> NDArray[np.float64]:
        found = run_model(network, prepare_input(judged.crops, fed))
        return nme_per_face(found.reshape(truth.shape), truth, points)

    before = nmes(model, contract)

    def drift(quantized: Quantized) -> FaceDrift:
        after = nmes(quantized.model, quantized.contract)
        some = judged.turned if judged.turned.any() else np.ones(len(truth), bool)
        return FaceDrift(float(after.mean() / before.mean() - 1), float(after[some].mean() / before[some].mean() - 1))

    return drift


def _require_float(coverage: Coverage, float_layers: tuple[str, ...]) -> None:
    """What was measured in float must not be quantized by onnxruntime's own optimizer when the file is opened."""
    if len(coverage.floating) < len(float_layers):
        raise ConvertError(
            f"{len(float_layers)} layers should stay in float, but this onnxruntime runs {len(coverage.floating)} so: "
            "report it to pfld-edge with the version of onnxruntime, and convert without --max-drift meanwhile"
        )


def _require_budget(budget: Budget) -> None:
    if not budget.holds:
        best = budget.drifts[-1]
        raise FellShortError(
            f"the drift can't be held to {budget.allowed:.2%}: {budget.drifts[0].all:+.2%} with every layer in INT8, "
            f"{best.all:+.2%} at best with {len(budget.float_layers)} layers in float; calibrate on more faces, "
            "or allow more"
        )
