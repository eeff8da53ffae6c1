"""Inspection of model files: contract, cost, quantization, fused operators; and the differences between two files."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.model_file import load_onnx, optimized_graph, read_contract
from pfld_edge_convert.model_stats import LayerWeights, ModelStats, float_equivalent, layer_weights, model_stats
from pfld_edge_convert.passes.base import graph_inputs
from pfld_edge_convert.passes.canonical_form import with_image_size
from pfld_edge_convert.quantization.mixed_precision import QuantizationReport, fusion_coverage, read_report
from pfld_edge_runtime import Contract, ModelFileError
from pfld_edge_runtime.errors import naming

_SIDE = 320
"""Height and width that costs are counted at where the file leaves them free."""


@dataclass(frozen=True, slots=True)
class FusedPattern:
    """Operators of nodes that run as one, in order, the operator that runs in their place, and how often."""

    operators: tuple[str, ...]
    runs_as: str
    count: int


@dataclass(frozen=True, slots=True)
class Fusion:
    """What onnxruntime makes of a file's nodes: frequent patterns first, and what runs here, layout changes included.

    `runs_as` is for each node of the file, ``Constant`` aside, the operator that computes its output, ``in NAME`` where
    it is fused into the node of that name, or ``gone``.
    """

    runs_as: tuple[str, ...]
    patterns: tuple[FusedPattern, ...]
    running: dict[str, int]

    def facts(self) -> tuple[str, ...]:
        """Describe what fuses (``26 x Conv + Relu -> FusedConv``) and what runs, a line each."""
        fused = "; ".join(f"{p.count} x {' + '.join(p.operators)} -> {p.runs_as}" for p in self.patterns) or "nothing"
        runs = ", ".join(f"{count} {operator}" for operator, count in self.running.items())
        return f"onnxruntime fuses: {fused}", f"onnxruntime runs here: {runs}"


@dataclass(frozen=True, slots=True)
class Inspection:
    """Contents of a model file: its size in bytes, sentences about it, and its network.

    Of a checkpoint, the model is the exported and reparameterized network. None: a contract or quantization report that
    the file doesn't carry, and the fusion of a network that onnxruntime refuses.
    """

    path: Path
    size: int
    contract: Contract | None
    facts: tuple[str, ...]
    model: onnx.ModelProto
    stats: ModelStats
    fusion: Fusion | None
    quantization: QuantizationReport | None = None


def inspect_file(path: Path) -> Inspection:
    """Inspect a checkpoint or an ONNX file; ModelFileError where it is missing or not a model."""
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    if path.suffix.lower() != ".onnx":
        return _inspect_checkpoint(path)
    model = load_onnx(path)
    opsets = ", ".join(f"{item.domain or 'ai.onnx'} {item.version}" for item in model.opset_import)
    facts = [f"{path.stat().st_size / 1000:.0f} kB; opset {opsets}; IR version {model.ir_version}"]
    report = read_report(model)
    if report is not None:
        facts.append(fusion_coverage(model).describe())
    with naming(path):
        contract = read_contract(model)
    if contract is not None and contract.end_to_end:
        inputs, outputs = (" and ".join(signature(values)) for values in (model.graph.input, model.graph.output))
        facts.append(f"end-to-end graph: {inputs} in, {outputs} out")
    return _inspect(path, contract, facts, model, report)


def _inspect_checkpoint(path: Path) -> Inspection:
    # Here: torch takes seconds to import, and an ONNX file needs none of it.
    from pfld_edge_convert.export import export_onnx
    from pfld_edge_convert.reparameterize import reparameterize, training_form
    from pfld_edge_train.checkpoint import load_model

    model, checkpoint = load_model(path)
    network = checkpoint.model
    weights = "EMA weights" if checkpoint.ema_weights is not None else "weights"
    size = f"{network.input_size} px, {network.num_landmarks} landmarks, {network.conv_branches} branches"
    facts = [f"{path.stat().st_size / 1000:.0f} kB; {network.kind}, width {network.width_factor:g}, {size}; {weights}"]
    if checkpoint.epoch >= 0:
        facts.append(f"trained to epoch {checkpoint.epoch}, best validation NME {checkpoint.best_nme:.5f}")
    fused = reparameterize(model)
    facts.append(training_form(model, fused))
    with naming(path):
        contract = Contract.from_dict(checkpoint.contract) if checkpoint.contract else None
    return _inspect(path, contract, facts, export_onnx(fused, network.input_size), None)


def _inspect(
    path: Path, contract: Contract | None, facts: list[str], model: onnx.ModelProto, report: QuantizationReport | None
) -> Inspection:
    filled = with_image_size(model, _SIDE)
    if filled is not None:
        facts.append(f"the image size is free; counted at {_SIDE} px a side")
    stats, fusion = model_stats(model if filled is None else filled), None
    try:
        fusion = fusion_of(model)
        facts.extend(fusion.facts())
    except ConvertError as error:
        facts.append(str(error))
    return Inspection(path, path.stat().st_size, contract, tuple(facts), model, stats, fusion, report)


def signature(values: Iterable[onnx.ValueInfoProto]) -> list[str]:
    """Name, shape and element type of inputs or outputs, e.g. ``image (batch, 3, 112, 112) float32``."""
    described = []
    for value in values:
        tensor = value.type.tensor_type
        shape = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in tensor.shape.dim)
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else "?"
        described.append(f"{value.name} ({shape}) {kind}")
    return described


def fusion_of(model: onnx.ModelProto) -> Fusion:
    """Open a model in onnxruntime and compare the graph that runs with the file's; ConvertError where it refuses."""
    # Without changes of layout tensors keep their names, so that nodes can be told apart.
    kept = {name: node.op_type for node in optimized_graph(model, layout=False).graph.node for name in node.output}
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    makers = [next((kept[name] for name in node.output if name in kept), "") for node in nodes]
    ends = _ends(nodes, kept)
    groups: dict[int, list[str]] = {}
    runs_as = ["gone"] * len(nodes)
    for place, end in enumerate(ends):
        if end is not None:
            groups.setdefault(end, []).append(nodes[place].op_type)
            runs_as[place] = makers[end] if end == place else f"in {nodes[end].name or nodes[end].output[0]}"
    counts = Counter((tuple(operators), makers[end]) for end, operators in groups.items() if len(operators) > 1)
    running = Counter(node.op_type for node in optimized_graph(model).graph.node)
    return Fusion(
        tuple(runs_as),
        tuple(FusedPattern(*pattern, count) for pattern, count in counts.most_common()),
        dict(running.most_common()),
    )


def _ends(nodes: Sequence[onnx.NodeProto], kept: dict[str, str]) -> list[int | None]:
    """For each node the first one at or behind it whose output is still made; None where there is none."""
    readers: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(place)
    ends: list[int | None] = [None] * len(nodes)
    for place in reversed(range(len(nodes))):
        if any(name in kept for name in nodes[place].output):
            ends[place] = place
            continue
        behind = [ends[reader] for name in nodes[place].output for reader in readers.get(name, [])]
        ends[place] = min((end for end in behind if end is not None), default=None)
    return ends


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
