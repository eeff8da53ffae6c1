"""Brings old files to the operator set that the other passes and the device runtime expect."""

from typing import ClassVar

import onnx

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.graph_index import drop_unused, onnx_opset

__all__ = ["IR_VERSION", "OPSET", "UpgradeOpset"]

OPSET = 18
"""The newest set that onnxruntime 1.17 (its limit is 20) and torch's exporter (its least is 18) both speak natively."""

IR_VERSION = 8
"""Of February 2021, the oldest that fits opset 18: read by every onnxruntime since 1.11."""


class UpgradeOpset(GraphPass):
    """Converts a model of an older opset to `OPSET` with onnx's version converter.

    Rewrite rules:
        - opset < 18: every node is replaced by its equivalent of opset 18 (attributes of Slice become inputs, ...).
        - IR version other than 8: becomes 8; initializers listed among the inputs no longer are.
        - opset > 18 is left as it is: converting down is not always possible.
    """

    name: ClassVar[str] = "upgrade-opset"
    tolerance: ClassVar[float] = 0.0

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place; return what was done."""
        before, ir_before = onnx_opset(model), model.ir_version
        if before >= OPSET and ir_before == IR_VERSION:
            return ""
        if before < OPSET:
            drop_unused(model)
            model.CopyFrom(_converted(model))
        if onnx_opset(model) == OPSET:
            model.ir_version = IR_VERSION
        if (onnx_opset(model), model.ir_version) == (before, ir_before):
            return ""
        return f"opset {before} to {onnx_opset(model)}, IR version {ir_before} to {model.ir_version}"


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except RuntimeError as error:
        raise ConvertError(f"the model can't be brought to opset {OPSET}: {error}") from error
