"""The graph that onnxruntime really runs: what it makes of a file on this processor."""

import tempfile
from pathlib import Path

import onnx
import onnxruntime

from pfld_edge_convert.errors import ConvertError

__all__ = ["optimized_graph"]


def optimized_graph(model: onnx.ModelProto | Path, *, layout: bool = True) -> onnx.ModelProto:
    """Open a model as a device would and read back what becomes of it.

    Args:
        model: In memory, or a file.
        layout: With the rewrites that depend on the processor (blocked and channels-last layouts), which give tensors
            new names; without them tensors keep the file's names.

    Raises:
        ConvertError: onnxruntime refuses the model.
    """
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not layout:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="pfld-edge-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ConvertError(f"onnxruntime {onnxruntime.__version__} refuses the model: {reason}") from error
        return onnx.load(options.optimized_model_filepath)
