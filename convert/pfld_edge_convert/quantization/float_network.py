"""A float network made ready for 8 bits: what it reads, and what its tensors hold."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.passes.align_channels import AlignChannels
from pfld_edge_convert.passes.base import check_equivalence
from pfld_edge_convert.passes.equalize_channels import EqualizeChannels
from pfld_edge_convert.passes.fold_normalization import CENTER, FoldNormalization
from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.quantization.choose import Histograms, channel_reach, grids_from, is_feature, with_headroom
from pfld_edge_convert.quantization.clear_sums import clear_sums
from pfld_edge_convert.quantization.grid import Grid
from pfld_edge_convert.quantization.layers import integer_tensors, weighted_layers
from pfld_edge_convert.quantization.observe import count_channels, showing
from pfld_edge_convert.quantization.plan import Plan
from pfld_edge_convert.quantization.qoperator import write_qoperator
from pfld_edge_convert.quantization.settings import QuantizationSettings
from pfld_edge_convert.quantization.targets import target_named
from pfld_edge_runtime import Contract, prepare_input

__all__ = ["FloatNetwork", "counted_network", "floating_input", "prepared"]

Crops = NDArray[np.uint8]

_PART = 32
"""Faces whose tensors are in memory at once while they are counted."""


@dataclass(frozen=True, slots=True)
class FloatNetwork:
    """A float network, and what faces make of its tensors.

    Attributes:
        model: For uint8 input it reads ``pixel - 128``.
        contract: How the INT8 network will be fed.
        histograms: Of every tensor that needs a grid.
    """

    model: onnx.ModelProto
    contract: Contract
    histograms: Histograms

    @property
    def pixels(self) -> bool:
        """Whether the INT8 network will read uint8 pixels."""
        return self.contract.input_dtype == "uint8"

    def floating_input(self, crops: Crops) -> NDArray[np.float32]:
        """Feed `model`: ``(N, S, S, 3)`` uint8 crops to ``(N, 3, S, S)``."""
        return floating_input(crops, self.contract)

    def grids(self, method: str) -> dict[str, Grid]:
        """A grid for every tensor, the input included, by a range method."""
        index = GraphIndex(self.model)
        grids = clear_sums(index, grids_from(index, self.histograms, method))
        grids[self.model.graph.input[0].name] = _input_grid(self.contract)
        return grids

    def equalized(self, strength: float, method: str, samples: Crops) -> "FloatNetwork":
        """Level the channels, as far as `strength` says, by the ranges that a method gives them.

        Raises:
            ConvertError: The outputs on `samples` changed.
        """
        equalize = EqualizeChannels(channel_reach(GraphIndex(self.model), self.histograms, method), strength)
        result = equalize(self.model).model
        check_equivalence(self.model, result, self.floating_input(samples), equalize.tolerance, equalize.name)
        divided = {
            name: histogram.divided(equalize.divisors[name]) if name in equalize.divisors else histogram
            for name, histogram in self.histograms.items()
        }
        return replace(self, model=result, histograms=divided)

    def written(self, plan: Plan) -> onnx.ModelProto:
        """The INT8 network of a plan."""
        return write_qoperator(self.model, plan, pixels=self.pixels)


def prepared(
    model: onnx.ModelProto, contract: Contract, settings: QuantizationSettings
) -> tuple[onnx.ModelProto, Contract]:
    """Let a network read pixels, where its first layers allow it, and pad it for the target's kernels."""
    fold = FoldNormalization(contract.mean, contract.scale)
    promised = contract.replace(fingerprint=None)
    if settings.pixels and fold.applies(model) and (contract.layout, contract.input_dtype) == ("NCHW", "float32"):
        model = fold(model).model
        promised = promised.replace(input_dtype="uint8", layout="NHWC")
    return AlignChannels(target_named(settings.target).channel_multiple)(model).model, promised


def counted_network(model: onnx.ModelProto, promised: Contract, crops: Crops, varied: Crops) -> FloatNetwork:
    """See what every tensor holds; features that are one number a face also on varied faces.

    Raises:
        ConvertError: The network gives values that aren't finite.
    """
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
    return FloatNetwork(model, promised, with_headroom(index, histograms))


def floating_input(crops: Crops, promised: Contract) -> NDArray[np.float32]:
    """Give a float network what the INT8 network of a contract is given."""
    if promised.input_dtype == "uint8":
        return np.ascontiguousarray(crops.astype(np.float32).transpose(0, 3, 1, 2) - CENTER)
    return np.asarray(prepare_input(crops, promised), np.float32)


def _parts(crops: Crops, promised: Contract) -> Iterator[NDArray[np.float32]]:
    return (floating_input(crops[start : start + _PART], promised) for start in range(0, len(crops), _PART))


def _input_grid(promised: Contract) -> Grid:
    if promised.input_dtype == "uint8":
        return Grid(1.0, CENTER)
    ends = [
        (level - mean) / scale for level in (0, 255) for mean, scale in zip(promised.mean, promised.scale, strict=True)
    ]
    return Grid.covering(min(ends), max(ends))
