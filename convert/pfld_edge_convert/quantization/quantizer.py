"""Static quantization of a float network: statistics, equalization, ranges, rounding, bias correction, writing."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx

from pfld_edge_convert.calibration import vary_crops
from pfld_edge_convert.errors import CalibrationError, ConvertError
from pfld_edge_convert.formats import FORMATS
from pfld_edge_convert.formats.qoperator import write_qoperator
from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.base import GraphIndex, check_equivalence, with_outputs
from pfld_edge_convert.passes.features import AveragesAsConvolutions, ConvolvedFeatures, SplitProducts
from pfld_edge_convert.passes.int8_preparation import (
    AlignChannels,
    CopyChannels,
    EqualizeChannels,
    FoldNormalization,
    SpaceToDepthStem,
    pixel_zero_point,
)
from pfld_edge_convert.quantization import ranges
from pfld_edge_convert.quantization.mixed_precision import deviation_per_face
from pfld_edge_convert.quantization.plan import Grid, Plan, hard_swish_offset, integer_tensors, weighted_layers
from pfld_edge_convert.quantization.reconstruction import initial_plan, reconstruct
from pfld_edge_convert.quantization.settings import EQUALIZE_BY, RANGE_CANDIDATES, QuantizationSettings, target_named
from pfld_edge_runtime import Contract, prepare_input
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array

_HELD_BACK = 4
"""One calibration face in so many is held back, to choose range methods by."""

_MOST_HELD_BACK = 64
_MOST_RECONSTRUCTED = 256
"""Faces whose activations are kept in memory at once (some 1.5 MB a face); histograms see all faces."""

_VARIATIONS = 2
"""Rotated and mirrored copies of the faces, for features that are one number a face."""

_FINALISTS, _FINALE, _CLEARLY_BETTER = 2, 64, 0.95
"""So many methods, and the safest, are compared with bias correction, on so many faces; one must gain by the factor."""

_CENTER = 128
"""Zero point in the middle of an 8-bit grid."""

_HEADROOM = 1.1
"""Factor on the extremes of pooled features: with one value per face, new faces often exceed the largest."""

_TUNED = 16
"""Faces in a step of fine-tuning."""

_BATCH = 32
"""Faces whose input is prepared at once for the histograms."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """An INT8 network in QOperator format, and its contract without fingerprint.

    The plan gives it in other formats, see `pfld_edge_convert.formats`; `Plan.model` is the equalized and aligned float
    network. `tried` is the landmark deviation on held-back faces, a fraction of the eye distance, with each range
    method; `float_layers` are the layers (`Layer.output`) that stayed in float; `tuning` is that deviation before and
    after fine-tuning, the lower one this network's, None without it.
    """

    model: onnx.ModelProto
    contract: Contract
    plan: Plan
    method: str
    tried: dict[str, float]
    float_layers: tuple[str, ...] = ()
    tuning: tuple[float, float] | None = None

    def float_input(self, crops: Uint8Array) -> Float32Array:
        """Input of `Plan.model`, ``(N, 3, S, S)`` float32, from ``(N, S, S, 3)`` uint8 crops."""
        return _float_input(crops, self.contract)


class Quantizer:
    """Quantizes a float network, for any choice of layers that stay in float.

    `layers` are those that can be quantized, first to last; `held_back` the calibration faces, ``(n, S, S, 3)``, that
    ranges and weights were not made from.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        crops: Uint8Array,
        contract: Contract,
        settings: QuantizationSettings | None = None,
        unusual: Callable[[], Uint8Array] | None = None,
    ) -> None:
        """Prepare an optimized float network, collect activation statistics, choose ranges.

        100 to 500 calibration faces are enough, ``(N, S, S, 3)`` uint8 in the contract's colour order; CalibrationError
        where there are none, or of another shape. Where they show few people, `unusual` makes crops of the same form
        that widen the ranges of features, if the network has any; no mean is taken of them.
        """
        self._settings = settings = settings or QuantizationSettings()
        self._target = target_named(self._settings.target)
        _check(crops, contract)
        self._metadata = list(model.metadata_props)
        self._used, self.held_back = _split(crops)
        self._varied = np.concatenate([vary_crops(self._used, seed) for seed in range(_VARIATIONS)])
        self._expected = run_model(model, prepare_input(self.held_back, contract))
        network = _collect(*self._prepared(model, contract), self._used, self._varied, unusual)
        by = EQUALIZE_BY if settings.equalize_by == "auto" else (settings.equalize_by,)
        equalized = {method: network.equalized(settings.equalize, method, crops[:8]) for method in by}
        self._network, self._method, self._tried = self._chosen(equalized if settings.equalize else {"": network})
        self.layers = tuple(self._initial_plan(self._network, self._method).weights)

    def make(
        self, float_layers: tuple[str, ...] = (), advance: Callable[[int], object] = lambda _count: None
    ) -> Quantized:
        """Round the weights, correct the biases, write the network; `advance` is called with 1 after each layer."""
        settings, network = self._settings, self._network
        plan = self._initial_plan(network, self._method, float_layers)
        plan = self._reconstructed(network, plan, _MOST_RECONSTRUCTED, settings.feedback, advance)
        described = settings.describe(self._method, FORMATS["qoperator"].label, len(float_layers))
        contract = network.contract.replace(quantization=described, target=settings.target)
        return Quantized(self._written(plan), contract, plan, self._method, self._tried, float_layers)

    def finetuned(
        self, quantized: Quantized, elapsed: Callable[[], float], batches: Iterable[Uint8Array] | None = None
    ) -> Quantized:
        """Fine-tune what `make` made, until `elapsed`, the share of the budget that is spent, is 1.

        On batches of crops, or on varied calibration faces. The network stays as it is if its landmarks on held-back
        faces are as close to the float network's.
        """
        from pfld_edge_convert.quantization.finetuning import finetune

        points = quantized.contract.landmarks.normalizing_points
        faces = (_float_input(crops, self._network.contract) for crops in batches or self._varied_batches())
        plan = finetune(quantized.plan, self._target.limits, faces, elapsed, points)
        contract = quantized.contract.replace(quantization=f"{quantized.contract.quantization}, fine-tuned")
        tuned = replace(quantized, model=self._written(plan), plan=plan, contract=contract)
        before, after = (float(self.deviations(network).mean()) for network in (quantized, tuned))
        return replace(tuned if after < before else quantized, tuning=(before, after))

    def deviations(self, quantized: Quantized) -> Float64Array:
        """``(n,)`` mean landmark distance of each held-back face from the float network, in eye distances."""
        return self._deviations(quantized.model, quantized.contract)

    def _deviations(self, model: onnx.ModelProto, contract: Contract) -> Float64Array:
        found = run_model(model, prepare_input(self.held_back, contract))
        return deviation_per_face(found, self._expected, contract.landmarks.normalizing_points)

    def _written(self, plan: Plan) -> onnx.ModelProto:
        written = write_qoperator(plan)
        if self._target.space_to_depth:
            written = SpaceToDepthStem()(written).model
        written.ClearField("metadata_props")
        written.metadata_props.extend(self._metadata)
        onnx.checker.check_model(written)
        return written

    def _varied_batches(self) -> Iterator[Uint8Array]:
        """Varied calibration faces without end, a quarter of them as they are."""
        random, count = np.random.default_rng(0), min(_TUNED, len(self._used))
        while True:
            crops = self._used[random.choice(len(self._used), count, replace=False)]
            crops[count // 4 :] = vary_crops(crops[count // 4 :], int(random.integers(2**31)))
            yield crops

    def _prepared(self, model: onnx.ModelProto, contract: Contract) -> tuple[onnx.ModelProto, Contract]:
        """Fold the normalization in, where the first layers allow it; prepare channels and features."""
        fold = FoldNormalization(contract.mean, contract.scale)
        fed = contract.replace(fingerprint=None)
        is_usual = (contract.layout, contract.input_dtype) == ("NCHW", "float32")
        if self._settings.uint8_input and is_usual and fold.applies(model):
            model = fold(model).model
            fed = fed.replace(input_dtype="uint8", layout="NHWC")
        align = AlignChannels(self._target.channel_multiple)
        for prepare in (CopyChannels(), align, ConvolvedFeatures(), SplitProducts(), AveragesAsConvolutions()):
            model = prepare(model).model
        return model, fed

    def _chosen(self, networks: dict[str, "_FloatNetwork"]) -> tuple["_FloatNetwork", str, dict[str, float]]:
        """The equalization and the range method whose landmarks stay closest on held-back faces."""
        methods = RANGE_CANDIDATES if self._settings.ranges == "auto" else (self._settings.ranges,)
        safest = next(iter(networks))
        ways = {
            method if way == safest else f"{method}, equalized by {way}": (network, method)
            for way, network in networks.items()
            for method in methods
        }
        first = next(iter(ways))
        if len(ways) == 1:
            return *ways[first], {}

        def deviation(way: str, faces: int = 0) -> float:
            network, method = ways[way]
            plan = self._initial_plan(network, method)
            if faces:
                plan = self._reconstructed(network, plan, faces)
            return float(self._deviations(write_qoperator(plan), network.contract).mean())

        found = {way: deviation(way) for way in ways}
        finalists = {*sorted(ways, key=found.__getitem__)[:_FINALISTS], first}
        fine = {way: deviation(way, _FINALE) for way in ways if way in finalists}
        best = min(fine, key=fine.__getitem__)
        # Held-back faces are few: clipping must gain clearly.
        return *ways[best if fine[best] < _CLEARLY_BETTER * fine[first] else first], {**found, **fine}

    def _initial_plan(self, network: "_FloatNetwork", method: str, float_layers: tuple[str, ...] = ()) -> Plan:
        reads_pixels, limits = network.contract.input_dtype == "uint8", self._target.limits
        return initial_plan(network.model, network.grids(method), limits, float_layers, uint8_input=reads_pixels)

    def _reconstructed(
        self,
        network: "_FloatNetwork",
        plan: Plan,
        faces: int,
        feedback: bool = False,
        advance: Callable[[int], object] = lambda _count: None,
    ) -> Plan:
        """Reconstruct layers as the settings say, on at most `faces` faces."""
        correct_bias = self._settings.correct_bias
        if not (feedback or correct_bias):
            return plan
        some, contract = self._used[:: -(-len(self._used) // faces)], network.contract
        # Only feedback needs so many samples; means are known from few.
        more = (_float_input(self._varied, contract), prepare_input(self._varied, contract)) if feedback else None
        fed, limits = (_float_input(some, contract), prepare_input(some, contract)), self._target.limits
        return reconstruct(plan, *fed, limits, more=more, feedback=feedback, correct_bias=correct_bias, advance=advance)


@dataclass(frozen=True, slots=True)
class _FloatNetwork:
    """A float network and its activation statistics."""

    model: onnx.ModelProto
    contract: Contract
    histograms: ranges.Histograms

    def grids(self, method: str) -> dict[str, Grid]:
        """A grid for every tensor, the input included, by a range method."""
        index = GraphIndex(self.model)
        grids = ranges.align_addition_scales(index, ranges.grids_from(index, self.histograms, method))
        # It would be 0 in int8, for which OpenVINO halves the weights on processors without VNNI, and rounds them.
        centred = [name for name, grid in grids.items() if grid.zero_point == _CENTER and hard_swish_offset(grid) != 0]
        grids |= {name: replace(grids[name], zero_point=_CENTER - 1) for name in centred}
        return {**grids, self.model.graph.input[0].name: _input_grid(self.contract)}

    def equalized(self, strength: float, method: str, samples: Uint8Array) -> "_FloatNetwork":
        """Equalize channels by the ranges that a method gives them; histograms are rescaled, not collected anew."""
        equalize = EqualizeChannels(
            ranges.channel_magnitudes(GraphIndex(self.model), self.histograms, method), strength
        )
        result = equalize(self.model).model
        inputs = _float_input(samples, self.contract)
        check_equivalence(self.model, result, inputs, equalize.tolerance, equalize.name)
        divided = {
            name: histogram.divided(equalize.divisors[name]) if name in equalize.divisors else histogram
            for name, histogram in self.histograms.items()
        }
        return replace(self, model=result, histograms=divided)


def _collect(
    model: onnx.ModelProto,
    contract: Contract,
    crops: Uint8Array,
    varied: Uint8Array,
    unusual: Callable[[], Uint8Array] | None = None,
) -> _FloatNetwork:
    """Collect the histograms of every tensor; of pooled features also on the varied faces and the unusual ones."""
    index = GraphIndex(model)
    names = integer_tensors(index, weighted_layers(index))
    histograms = ranges.collect_histograms(model, names, _float_batches(crops, contract))
    features = [name for name in names if ranges.is_feature(index, name)]
    if features:
        known = {name: histograms[name] for name in features}
        more = varied if unusual is None else np.concatenate([varied, unusual()])
        histograms |= ranges.collect_histograms(
            with_outputs(model, *features), features, _float_batches(more, contract), known
        )
    bad = [name for name, histogram in histograms.items() if not np.isfinite([histogram.low, histogram.high]).all()]
    if bad:
        raise ConvertError(f"the float network gives values that aren't finite, first in {bad[0]}")
    wider = {name: histograms[name].stretched(_HEADROOM) for name in features}
    return _FloatNetwork(model, contract, {**histograms, **wider})


def _float_input(crops: Uint8Array, contract: Contract) -> Float32Array:
    """Input of the float network, ``(N, 3, S, S)``, where `contract` is the INT8 network's."""
    if contract.input_dtype == "uint8":
        return np.ascontiguousarray(crops.astype(np.float32).transpose(0, 3, 1, 2) - pixel_zero_point(contract.mean))
    return np.asarray(prepare_input(crops, contract), np.float32)


def _float_batches(crops: Uint8Array, contract: Contract) -> Iterator[Float32Array]:
    return (_float_input(crops[start : start + _BATCH], contract) for start in range(0, len(crops), _BATCH))


def _input_grid(contract: Contract) -> Grid:
    if contract.input_dtype == "uint8":
        return Grid(1.0, pixel_zero_point(contract.mean))
    ends = [
        (level - mean) / scale for level in (0, 255) for mean, scale in zip(contract.mean, contract.scale, strict=True)
    ]
    return Grid.covering(min(ends), max(ends))


def _check(crops: Uint8Array, contract: Contract) -> None:
    size = contract.input_size
    if len(crops) == 0:
        raise CalibrationError("no calibration faces: INT8 needs at least one, some 200 give steady ranges")
    if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
        raise CalibrationError(
            f"calibration faces must be uint8 of shape (n, {size}, {size}, 3); found {crops.dtype} {crops.shape}"
        )


def _split(crops: Uint8Array) -> tuple[Uint8Array, Uint8Array]:
    """Faces for statistics, and held-back faces to select range methods by; all for both where there are few."""
    if len(crops) < 2 * _HELD_BACK:
        return crops, crops
    held = np.arange(len(crops)) % _HELD_BACK == _HELD_BACK - 1
    return crops[~held], crops[held][:_MOST_HELD_BACK]
