"""Looks into a model file, checkpoint or ONNX."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from pfld_edge_convert.contract_io import read_contract
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.fusion import Fusion, fusion_of
from pfld_edge_convert.input_shapes import with_free_sides_filled
from pfld_edge_convert.model_stats import ModelStats, model_stats
from pfld_edge_convert.onnx_file import load_onnx
from pfld_edge_convert.quantization.coverage import fusion_coverage
from pfld_edge_convert.quantization.report import QuantizationReport, read_report
from pfld_edge_convert.receptive_field import ReceptiveField, field_facts, receptive_fields
from pfld_edge_runtime import Contract, ModelFileError

__all__ = ["Inspection", "inspect_file"]


_SIDE = 320
"""For pictures of any size: what small face detectors are commonly fed."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a file.

    Attributes:
        path: The file.
        size: Its bytes.
        contract: None where the file carries none.
        facts: Sentences about the file.
        model: Its network; of a checkpoint, the one that `pfld-edge convert` begins with.
        stats: The network's cost.
        fields: What each layer of `stats` sees of the picture; None where that isn't known.
        fusion: What onnxruntime makes of the network; None where it refuses it.
        quantization: What an INT8 file knows of its layers; None where it says nothing.
    """

    path: Path
    size: int
    contract: Contract | None
    facts: tuple[str, ...]
    model: onnx.ModelProto
    stats: ModelStats
    fields: tuple[ReceptiveField | None, ...]
    fusion: Fusion | None
    quantization: QuantizationReport | None = None


def inspect_file(path: Path) -> Inspection:
    """Look into a checkpoint or an ONNX file.

    Raises:
        ModelFileError: The file is missing or not a model.
        ModelContractError: Its contract is damaged.
        PfldEdgeError: The checkpoint can't be read.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    if path.suffix.lower() != ".onnx":
        return _inspect_checkpoint(path)
    model = load_onnx(path)
    opsets = ", ".join(f"{item.domain or 'ai.onnx'} {item.version}" for item in model.opset_import)
    facts: tuple[str, ...] = (f"{path.stat().st_size / 1000:.0f} kB; opset {opsets}; IR version {model.ir_version}",)
    report = read_report(model)
    if report is not None:
        facts = (*facts, fusion_coverage(model).describe())
    contract = read_contract(model)
    if contract is not None and contract.end_to_end:
        facts = (*facts, f"end-to-end graph: {_signature(model.graph.input)} in, {_signature(model.graph.output)} out")
    return _inspect(path, contract, facts, model, report)


def _inspect(
    path: Path,
    contract: Contract | None,
    facts: tuple[str, ...],
    model: onnx.ModelProto,
    report: QuantizationReport | None = None,
) -> Inspection:
    filled = with_free_sides_filled(model, _SIDE)
    if filled is not None:
        facts = (*facts, f"the picture's size is free; counted at {_SIDE} px a side")
    counted = model if filled is None else filled
    seen = receptive_fields(counted)
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    fields = tuple(seen.get(node.output[0]) for node in nodes)
    try:
        fusion = fusion_of(model)
    except ConvertError as error:
        fusion, facts = None, (*facts, str(error))
    facts += field_facts(model, seen) + (fusion.facts() if fusion else ())
    return Inspection(path, path.stat().st_size, contract, facts, model, model_stats(counted), fields, fusion, report)


def _signature(values: Iterable[onnx.ValueInfoProto]) -> str:
    described = []
    for value in values:
        tensor = value.type.tensor_type
        shape = ", ".join(str(dim.dim_value or dim.dim_param) for dim in tensor.shape.dim)
        described.append(f"{value.name} ({shape}) {np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))}")
    return " and ".join(described)


def _inspect_checkpoint(path: Path) -> Inspection:
    # Here: torch takes seconds to import, and an ONNX file needs none of it.
    from pfld_edge_convert.export import export_onnx
    from pfld_edge_convert.fuse import reparameterize
    from pfld_edge_convert.training_form import training_form
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
    contract = Contract.from_dict(checkpoint.contract) if checkpoint.contract else None
    return _inspect(path, contract, tuple(facts), export_onnx(fused, network.input_size))
