"""From a float network and faces to an INT8 network: the steps in their order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.errors import CalibrationError, ConvertError
from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes.align_channels import AlignChannels
from pfld_edge_convert.passes.base import GraphPass, check_equivalence
from pfld_edge_convert.passes.equalize_channels import EqualizeChannels
from pfld_edge_convert.passes.fold_normalization import CENTER, FoldNormalization
from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.passes.group_pixels import GroupPixels
from pfld_edge_convert.quantization.choose import (
    Histograms,
    best_method,
    channel_reach,
    grids_from,
    is_feature,
    with_headroom,
)
from pfld_edge_convert.quantization.deviation import deviation_per_face
from pfld_edge_convert.quantization.grid import Grid
from pfld_edge_convert.quantization.layers import integer_tensors, weighted_layers
from pfld_edge_convert.quantization.observe import count_channels, showing
from pfld_edge_convert.quantization.plan import Plan
from pfld_edge_convert.quantization.qoperator import write_qoperator
from pfld_edge_convert.quantization.reconstruct import first_plan, reconstruct
from pfld_edge_convert.quantization.settings import CANDIDATES, QuantizationSettings
from pfld_edge_convert.quantization.targets import target_named
from pfld_edge_convert.vary_crops import vary_crops
from pfld_edge_runtime import Contract, prepare_input

__all__ = ["Quantized", "Quantizer", "quantize"]

Crops = NDArray[np.uint8]

_HELD_BACK = 4
"""One calibration face in so many is held back, to choose by."""

_MOST_HELD_BACK = 64
_PART = 32
_MOST_RECONSTRUCTED = 256
"""Faces whose activations are kept in memory at once (some 1.5 MB a face); ranges are counted over all faces."""

_VARIATIONS = 2
"""Turned and mirrored copies of the faces, for features that are one number a face."""

_FINALE = 64
"""Faces with which the last range methods are compared."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """An INT8 network, and what it was made from.

    Attributes:
        model: QOperator nodes.
        contract: How to feed it, without fingerprint.
        floating: The float network that its integers stand for: equalized, aligned, and for uint8 input reading
            ``pixel - 128``.
        plan: Its grids and integer weights.
        method: The range method that was chosen.
        tried: Mean deviation of held-back faces, a fraction of the eye distance, with each range method; see
            `best_method`.
        float_layers: Names of the layers (`Layer.output`) that stayed in float.
    """

    model: onnx.ModelProto
    contract: Contract
    floating: onnx.ModelProto
    plan: Plan
    method: str
    tried: dict[str, float]
    float_layers: tuple[str, ...] = ()

    def floating_input(self, crops: Crops) -> NDArray[np.float32]:
        """Feed `floating`: ``(N, S, S, 3)`` uint8 crops to ``(N, 3, S, S)``."""
        return _floating_input(crops, self.contract)


def quantize(
    model: onnx.ModelProto,
    crops: Crops,
    contract: Contract,
    settings: QuantizationSettings | None = None,
    advance: Callable[[int], object] | None = None,
) -> Quantized:
    """Quantize a float network: all of `Quantizer` in one call."""
    return Quantizer(model, crops, contract, settings).make((), advance)


class Quantizer:
    """A float network with all that is known of its tensors, ready to be written in 8 bits.

    Attributes:
        layers: Names of the layers that can be quantized, first to last.
        held_back: ``(n, S, S, 3)`` calibration faces that ranges and weights were not made from.
    """

    def __init__(
        self, model: onnx.ModelProto, crops: Crops, contract: Contract, settings: QuantizationSettings | None = None
    ) -> None:
        """Prepare the network, see what its tensors hold, choose its ranges.

        Args:
            model: Optimized float network that `contract` describes; left as it is.
            crops: ``(N, S, S, 3)`` uint8 calibration faces in the contract's colour order; 100 to 500 are enough.
            contract: Of the float network.
            settings: Defaults where None.

        Raises:
            CalibrationError: No faces, or faces of another shape.
            ConvertError: The network can't be quantized.
        """
        self._settings = settings or QuantizationSettings()
        _check(crops, contract)
        self._original = model
        self._limits = target_named(self._settings.target).limits
        self._model, self._contract = _prepared(model, contract, self._settings)
        self._used, self.held_back = _split(crops)
        self._varied = np.concatenate([vary_crops(self._used, seed) for seed in range(_VARIATIONS)])
        self._histograms = _counted(self._model, self._used, self._varied, self._contract)
        if self._settings.equalize > 0:
            samples = _floating_input(crops[:8], self._contract)
            self._model, self._histograms = _equalized(self._model, self._histograms, self._settings.equalize, samples)
        self._judge = _Judge(model, self.held_back, contract, self._contract)
        candidates = CANDIDATES if self._settings.ranges == "auto" else (self._settings.ranges,)
        self._method, self._tried = best_method(
            candidates,
            lambda method: self._judge.deviation(self._written(self._first_plan(method, ()))),
            lambda method: self._judge.deviation(self._written(self._corrected(method, (), _FINALE, feedback=False))),
        )
        self.layers = tuple(self._first_plan(self._method, ()).weights)

    def make(self, float_layers: tuple[str, ...] = (), advance: Callable[[int], object] | None = None) -> Quantized:
        """Round the weights, correct the biases, write the network.

        Args:
            float_layers: Names of layers that stay in float.
            advance: Called with 1 after each layer of the network.
        """
        settings = self._settings
        plan = self._corrected(
            self._method, float_layers, _MOST_RECONSTRUCTED, feedback=settings.feedback, advance=advance
        )
        contract = self._contract.replace(
            quantization=settings.describe(self._method, len(float_layers)), target=settings.target
        )
        written = _finished(self._model, plan, contract, self._original)
        return Quantized(written, contract, self._model, plan, self._method, self._tried, float_layers)

    @property
    def _pixels(self) -> bool:
        return self._contract.input_dtype == "uint8"

    def _first_plan(self, method: str, float_layers: tuple[str, ...]) -> Plan:
        grids = grids_from(GraphIndex(self._model), self._histograms, method)
        grids[self._model.graph.input[0].name] = _input_grid(self._contract)
        return first_plan(self._model, grids, self._limits, frozenset(float_layers))

    def _corrected(
        self,
        method: str,
        float_layers: tuple[str, ...],
        faces: int,
        *,
        feedback: bool,
        advance: Callable[[int], object] | None = None,
    ) -> Plan:
        """A plan with what the settings ask for, made on so many faces at most."""
        plan = self._first_plan(method, float_layers)
        if not (feedback or self._settings.correct_bias):
            return plan
        some = self._used[:: -(-len(self._used) // faces)]
        return reconstruct(
            self._model,
            plan,
            _floating_input(some, self._contract),
            prepare_input(some, self._contract),
            self._limits,
            pixels=self._pixels,
            # Only feedback needs so many samples; means are known from few.
            more=(_floating_input(self._varied, self._contract), prepare_input(self._varied, self._contract))
            if feedback
            else None,
            feedback=feedback,
            correct_bias=self._settings.correct_bias,
            advance=advance,
        )

    def _written(self, plan: Plan) -> onnx.ModelProto:
        return write_qoperator(self._model, plan, pixels=self._pixels)


class _Judge:
    """Knows what the float network says of the held-back faces."""

    def __init__(self, model: onnx.ModelProto, crops: Crops, contract: Contract, promised: Contract) -> None:
        self._points = contract.landmarks.normalizing_points
        self._expected = run_model(model, prepare_input(crops, contract))
        self._inputs = prepare_input(crops, promised)

    def deviation(self, model: onnx.ModelProto) -> float:
        """Mean deviation of an INT8 network."""
        found = run_model(model, self._inputs)
        return float(deviation_per_face(found, self._expected, self._points).mean())


def _check(crops: Crops, contract: Contract) -> None:
    size = contract.input_size
    if len(crops) == 0:
        raise CalibrationError("no calibration faces: INT8 needs at least one, some 200 give steady ranges")
    if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
        raise CalibrationError(
            f"calibration faces must be uint8 of shape (n, {size}, {size}, 3); found {crops.dtype} {crops.shape}"
        )


def _prepared(
    model: onnx.ModelProto, contract: Contract, settings: QuantizationSettings
) -> tuple[onnx.ModelProto, Contract]:
    """Let the network read pixels, and pad it for the target's kernels."""
    fold = FoldNormalization(contract.mean, contract.scale)
    promised = contract.replace(fingerprint=None)
    if settings.pixels and fold.applies(model) and (contract.layout, contract.input_dtype) == ("NCHW", "float32"):
        model = fold(model).model
        promised = promised.replace(input_dtype="uint8", layout="NHWC")
    return AlignChannels(target_named(settings.target).channel_multiple)(model).model, promised


def _split(crops: Crops) -> tuple[Crops, Crops]:
    """Faces to learn from and faces to choose by; the same where there are too few to part."""
    if len(crops) < 2 * _HELD_BACK:
        return crops, crops
    held = np.arange(len(crops)) % _HELD_BACK == _HELD_BACK - 1
    return crops[~held], crops[held][:_MOST_HELD_BACK]


def _counted(model: onnx.ModelProto, crops: Crops, varied: Crops, promised: Contract) -> Histograms:
    """See what every tensor holds; features that are one number a face also on varied faces."""
    index = GraphIndex(model)
    names = integer_tensors(index, weighted_layers(index))
    histograms = count_channels(model, names, _parts(crops, promised))
    features = [name for name in names if is_feature(index, name)]
    if features:
        known = {name: histograms[name] for name in features}
        histograms |= count_channels(showing(model, *features), features, _parts(varied, promised), known)
    bad = [name for name, histogram in histograms.items() if not np.isfinite([histogram.low, histogram.high]).all()]
    if bad:
        raise ConvertError(f"the float network gives values that aren't finite, first in {bad[0]}")
    return with_headroom(index, histograms)


def _parts(crops: Crops, promised: Contract) -> Iterator[NDArray[np.float32]]:
    return (_floating_input(crops[start : start + _PART], promised) for start in range(0, len(crops), _PART))


def _equalized(
    model: onnx.ModelProto, histograms: Histograms, strength: float, samples: NDArray[np.float32]
) -> tuple[onnx.ModelProto, Histograms]:
    equalize = EqualizeChannels(channel_reach(GraphIndex(model), histograms), strength)
    _proven(equalize, model, samples)
    result = equalize(model).model
    return result, {
        name: histogram.divided(equalize.divisors[name]) if name in equalize.divisors else histogram
        for name, histogram in histograms.items()
    }


def _proven(graph_pass: GraphPass, model: onnx.ModelProto, samples: NDArray[np.float32]) -> None:
    check_equivalence(model, graph_pass(model).model, samples, graph_pass.tolerance, graph_pass.name)


def _floating_input(crops: Crops, promised: Contract) -> NDArray[np.float32]:
    if promised.input_dtype == "uint8":
        return np.ascontiguousarray(crops.astype(np.float32).transpose(0, 3, 1, 2) - CENTER)
    return np.asarray(prepare_input(crops, promised), np.float32)


def _input_grid(promised: Contract) -> Grid:
    if promised.input_dtype == "uint8":
        return Grid(1.0, CENTER)
    ends = [
        (level - mean) / scale for level in (0, 255) for mean, scale in zip(promised.mean, promised.scale, strict=True)
    ]
    return Grid.covering(min(ends), max(ends))


def _finished(floating: onnx.ModelProto, plan: Plan, promised: Contract, original: onnx.ModelProto) -> onnx.ModelProto:
    """Write a plan as its target wants it, with the original's metadata."""
    written = write_qoperator(floating, plan, pixels=promised.input_dtype == "uint8")
    if target_named(promised.target).group_pixels:
        written = GroupPixels()(written).model
    written.ClearField("metadata_props")
    written.metadata_props.extend(original.metadata_props)
    onnx.checker.check_model(written)
    return written
