"""From a float network and faces to an INT8 network: the steps in their order."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.errors import CalibrationError
from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes.group_pixels import GroupPixels
from pfld_edge_convert.quantization.choose import best_method
from pfld_edge_convert.quantization.deviation import deviation_per_face
from pfld_edge_convert.quantization.float_network import FloatNetwork, counted_network, floating_input, prepared
from pfld_edge_convert.quantization.plan import Plan
from pfld_edge_convert.quantization.reconstruct import first_plan, reconstruct
from pfld_edge_convert.quantization.settings import CANDIDATES, LEVELLED_BY, QuantizationSettings
from pfld_edge_convert.quantization.targets import target_named
from pfld_edge_convert.quantization.weights import WeightLimits
from pfld_edge_convert.vary_crops import vary_crops
from pfld_edge_runtime import Contract, prepare_input

__all__ = ["Quantized", "Quantizer", "quantize"]

Crops = NDArray[np.uint8]

_HELD_BACK = 4
"""One calibration face in so many is held back, to choose by."""

_MOST_HELD_BACK = 64
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
        return floating_input(crops, self.contract)


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
        self._used, self.held_back = _split(crops)
        self._varied = np.concatenate([vary_crops(self._used, seed) for seed in range(_VARIATIONS)])
        self._judge = _Judge(model, self.held_back, contract)
        counted = counted_network(*prepared(model, contract, self._settings), self._used, self._varied)
        self._network, self._method, self._tried = self._chosen(self._levelled(counted, crops[:8]))
        self.layers = tuple(self._first_plan(self._network, self._method).weights)

    def make(self, float_layers: tuple[str, ...] = (), advance: Callable[[int], object] | None = None) -> Quantized:
        """Round the weights, correct the biases, write the network.

        Args:
            float_layers: Names of layers that stay in float.
            advance: Called with 1 after each layer of the network.
        """
        settings, network = self._settings, self._network
        plan = self._first_plan(network, self._method, float_layers)
        plan = self._improved(network, plan, _MOST_RECONSTRUCTED, feedback=settings.feedback, advance=advance)
        contract = network.contract.replace(
            quantization=settings.describe(self._method, len(float_layers)), target=settings.target
        )
        written = _finished(network, plan, contract, self._original)
        return Quantized(written, contract, network.model, plan, self._method, self._tried, float_layers)

    def _levelled(self, network: FloatNetwork, samples: Crops) -> dict[str, FloatNetwork]:
        """The network for each way of levelling channels."""
        settings = self._settings
        if settings.equalize == 0:
            return {"": network}
        ways = LEVELLED_BY if settings.levelled_by == "auto" else (settings.levelled_by,)
        return {way: network.equalized(settings.equalize, way, samples) for way in ways}

    def _chosen(self, levelled: dict[str, FloatNetwork]) -> tuple[FloatNetwork, str, dict[str, float]]:
        """The way of levelling and the range method whose landmarks stay closest on held-back faces."""
        methods = CANDIDATES if self._settings.ranges == "auto" else (self._settings.ranges,)
        first = next(iter(levelled))
        ways = {
            method if way == first else f"{method}, levelled by {way}": (network, method)
            for way, network in levelled.items()
            for method in methods
        }

        def deviation(way: str, *, finely: bool) -> float:
            network, method = ways[way]
            plan = self._first_plan(network, method)
            if finely:
                plan = self._improved(network, plan, _FINALE, feedback=False)
            return self._judge.deviation(network.written(plan), network.contract)

        best, tried = best_method(tuple(ways), partial(deviation, finely=False), partial(deviation, finely=True))
        return *ways[best], tried

    def _first_plan(self, network: FloatNetwork, method: str, float_layers: tuple[str, ...] = ()) -> Plan:
        return first_plan(network.model, network.grids(method), self._limits, frozenset(float_layers))

    @property
    def _limits(self) -> WeightLimits:
        return target_named(self._settings.target).limits

    def _improved(
        self,
        network: FloatNetwork,
        plan: Plan,
        faces: int,
        *,
        feedback: bool,
        advance: Callable[[int], object] | None = None,
    ) -> Plan:
        """Do what the settings ask for, on so many faces at most."""
        if not (feedback or self._settings.correct_bias):
            return plan
        some = self._used[:: -(-len(self._used) // faces)]
        return reconstruct(
            network.model,
            plan,
            network.floating_input(some),
            prepare_input(some, network.contract),
            self._limits,
            pixels=network.pixels,
            # Only feedback needs so many samples; means are known from few.
            more=(network.floating_input(self._varied), prepare_input(self._varied, network.contract))
            if feedback
            else None,
            feedback=feedback,
            correct_bias=self._settings.correct_bias,
            advance=advance,
        )


class _Judge:
    """Knows what the float network says of the held-back faces."""

    def __init__(self, model: onnx.ModelProto, crops: Crops, contract: Contract) -> None:
        self._points = contract.landmarks.normalizing_points
        self._crops = crops
        self._expected = run_model(model, prepare_input(crops, contract))

    def deviation(self, model: onnx.ModelProto, contract: Contract) -> float:
        """Mean deviation of an INT8 network."""
        found = run_model(model, prepare_input(self._crops, contract))
        return float(deviation_per_face(found, self._expected, self._points).mean())


def _check(crops: Crops, contract: Contract) -> None:
    size = contract.input_size
    if len(crops) == 0:
        raise CalibrationError("no calibration faces: INT8 needs at least one, some 200 give steady ranges")
    if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
        raise CalibrationError(
            f"calibration faces must be uint8 of shape (n, {size}, {size}, 3); found {crops.dtype} {crops.shape}"
        )


def _split(crops: Crops) -> tuple[Crops, Crops]:
    """Faces to learn from and faces to choose by; the same where there are too few to part."""
    if len(crops) < 2 * _HELD_BACK:
        return crops, crops
    held = np.arange(len(crops)) % _HELD_BACK == _HELD_BACK - 1
    return crops[~held], crops[held][:_MOST_HELD_BACK]


def _finished(network: FloatNetwork, plan: Plan, promised: Contract, original: onnx.ModelProto) -> onnx.ModelProto:
    """Write a plan as its target wants it, with the original's metadata."""
    written = network.written(plan)
    if target_named(promised.target).group_pixels:
        written = GroupPixels()(written).model
    written.ClearField("metadata_props")
    written.metadata_props.extend(original.metadata_props)
    onnx.checker.check_model(written)
    return written
