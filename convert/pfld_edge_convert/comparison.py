"""Differences between two model files: totals, contracts, operators, weights."""

from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from pfld_edge_convert.inspection import Inspection, signature
from pfld_edge_convert.passes.base import graph_inputs
from pfld_edge_convert.quantized_models import LayerWeights, float_equivalent, layer_weights
from pfld_edge_runtime import Contract


@dataclass(frozen=True, slots=True)
class Difference:
    """A property of which the two files have different values."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """Absolute differences of the weights, as real numbers, of a layer with these names in both files.

    `rescaled` tells that 8-bit weights are compared with float ones: equalization may have scaled them, so that weights
    differ where the networks don't. `relative` is the largest difference over the first file's largest weight. Where
    the shapes (output channels first) differ, differences are None.
    """

    first: str
    second: str
    rescaled: bool
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    largest: float | None
    mean: float | None
    relative: float | None

    @property
    def identical(self) -> bool:
        """Whether all weights are equal."""
        return self.largest == 0


@dataclass(frozen=True, slots=True)
class GraphEdit:
    """Operators of both files that differ, and the layer before them in the first file, empty at the beginning."""

    after: str
    first: tuple[str, ...]
    second: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences of two files: totals, fields of the contracts by dotted name, numbers and order of operators.

    `weights` are the layers that both have, first to last, identical ones too; `only_first` and `only_second` name the
    layers with weights that the other file lacks.
    """

    totals: tuple[Difference, ...]
    contract: tuple[Difference, ...]
    operators: tuple[Difference, ...]
    edits: tuple[GraphEdit, ...]
    weights: tuple[WeightDifference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def compare(first: Inspection, second: Inspection) -> Comparison:
    """Compare two files, of checkpoints the networks that `pfld-edge convert` would make of them."""
    counts = [Counter(layer.op_type for layer in found.stats.layers) for found in (first, second)]
    weights, only_first, only_second = _weights(layer_weights(first.model), layer_weights(second.model))
    return Comparison(
        _differing(_totals(first), _totals(second)),
        _contracts(first.contract, second.contract),
        _differing(*({name: count[name] for name in sorted(counts[0] | counts[1])} for count in counts)),
        _edits(first, second),
        weights,
        only_first,
        only_second,
    )


def _differing(first: dict[str, Any], second: dict[str, Any]) -> tuple[Difference, ...]:
    names = dict.fromkeys([*first, *second])
    return tuple(
        Difference(name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)
    )


def _totals(found: Inspection) -> dict[str, Any]:
    model = found.model
    return {
        "size": found.size,
        "opset": {item.domain or "ai.onnx": item.version for item in model.opset_import},
        "IR version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": signature(graph_inputs(model)),
        "outputs": signature(model.graph.output),
        "nodes": found.stats.nodes,
        "MACs": found.stats.macs,
        "parameters": found.stats.parameters,
    }


def _contracts(first: Contract | None, second: Contract | None) -> tuple[Difference, ...]:
    if first is None or second is None:
        named = [contract and f"of {contract.model or 'a network'}" for contract in (first, second)]
        return () if first is second else (Difference("contract", *named),)
    return _differing(_flat(first), _flat(second))


def _flat(contract: Contract) -> dict[str, Any]:
    """A contract's fields by dotted name; long lists count as one value."""
    flat: dict[str, Any] = {}
    for name, value in contract.to_dict().items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": item for inner, item in value.items()}
        else:
            flat[name] = value
    return flat


def _edits(first: Inspection, second: Inspection) -> tuple[GraphEdit, ...]:
    """Align the operators of two networks; a quantized one counts as the float one that it stands for."""
    twins = [
        [node.op_type for node in float_equivalent(found.model).graph.node if node.op_type != "Constant"]
        for found in (first, second)
    ]
    layers = [found.stats.layers for found in (first, second)]
    return tuple(
        GraphEdit(
            layers[0][i - 1].name if i else "",
            tuple(layer.op_type for layer in layers[0][i:i_end]),
            tuple(layer.op_type for layer in layers[1][j:j_end]),
        )
        for kind, i, i_end, j, j_end in SequenceMatcher(None, twins[0], twins[1], autojunk=False).get_opcodes()
        if kind != "equal"
    )


def _weights(
    first: list[LayerWeights], second: list[LayerWeights]
) -> tuple[tuple[WeightDifference, ...], tuple[str, ...], tuple[str, ...]]:
    """Pair layers in order: those of one kind and shape, and in between as many as remain on both sides."""
    keys = [[(layer.kind, layer.weight.shape) for layer in layers] for layers in (first, second)]
    pairs, alone = list[WeightDifference](), (list[str](), list[str]())
    for kind, i, i_end, j, j_end in SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_opcodes():
        mine, theirs = first[i:i_end], second[j:j_end]
        if kind == "equal" or [layer.kind for layer in mine] == [layer.kind for layer in theirs]:
            pairs += [_difference(one, other) for one, other in zip(mine, theirs, strict=True)]
        else:
            alone[0].extend(layer.name for layer in mine)
            alone[1].extend(layer.name for layer in theirs)
    return tuple(pairs), tuple(alone[0]), tuple(alone[1])


def _difference(first: LayerWeights, second: LayerWeights) -> WeightDifference:
    shapes = (first.weight.shape, second.weight.shape)
    pair = (first.name, second.name, first.integer != second.integer, shapes)
    if shapes[0] != shapes[1]:
        return WeightDifference(*pair, None, None, None)
    apart = np.abs(first.weight - second.weight)
    largest, most = float(apart.max(initial=0)), float(np.abs(first.weight).max(initial=0))
    return WeightDifference(
        *pair, largest, float(apart.mean()) if apart.size else 0.0, largest / most if most else None
    )
