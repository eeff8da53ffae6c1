"""Published PFLD ONNX files, turned back into checkpoints by matching their dataflow."""

from pfld_edge_convert.onnx_import.importer import import_onnx

__all__ = ["import_onnx"]
