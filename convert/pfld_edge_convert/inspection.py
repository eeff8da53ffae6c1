"""Inspection of a model file: contract, cost, quantization, and the operators that onnxruntime fuses."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.inference import optimized_graph
from pfld_edge_convert.model_file import load_onnx, read_contract
from pfld_edge_convert.model_stats import ModelStats, model_stats
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
    """Inspect a checkpoint or an ONNX file.

    Raises:
        ModelFileError: The file is missing or not a model.
    """
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
    """Open a model in onnxruntime and compare the graph that runs with the file's.

    Raises:
        ConvertError: onnxruntime refuses the model.
    """
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
