"""Runs ONNX models in memory with onnxruntime, and reads back the graph that onnxruntime optimizes them to."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_convert.errors import ConvertError

_ONLY_FATAL = 4


def open_model(model: onnx.ModelProto, *, optimize: bool = True, fuse_qdq: bool = True) -> onnxruntime.InferenceSession:
    """Open a model on the CPU, one thread, without onnxruntime's log lines.

    Args:
        model: The network.
        optimize: Whether onnxruntime may rewrite the graph for itself. Without it the nodes run as they stand, so
            that models which differ in nodes that move no numbers give the same bits.
        fuse_qdq: Whether it may turn float operators between QuantizeLinear and DequantizeLinear into integer ones.

    Raises:
        ConvertError: onnxruntime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _ONLY_FATAL
    if not fuse_qdq:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(model.SerializeToString(), options)


def run_model(
    model: onnx.ModelProto, inputs: NDArray[np.generic], *, optimize: bool = True, fuse_qdq: bool = True
) -> NDArray[np.float32]:
    """Run a model with one input ``(N, ...)``, one by one where its batch is fixed; give its first output.

    Raises:
        ConvertError: onnxruntime refuses the model or the inputs.
    """
    session = open_model(model, optimize=optimize, fuse_qdq=fuse_qdq)
    name = session.get_inputs()[0].name
    parts = np.split(inputs, len(inputs)) if session.get_inputs()[0].shape[0] == 1 else [inputs]
    try:
        outputs = [session.run(None, {name: part})[0] for part in parts]
    except Exception as error:
        raise ConvertError(f"the model can't run on inputs of shape {inputs.shape}: {str(error)[:300]}") from error
    return np.concatenate(outputs)


def optimized_graph(model: onnx.ModelProto | Path, *, layout: bool = True) -> onnx.ModelProto:
    """Open a model as a device would and read back the optimized graph.

    With `layout` come the rewrites that depend on the processor (blocked and channels-last layouts), which rename
    tensors; without them tensors keep the file's names.

    Raises:
        ConvertError: onnxruntime refuses the model.
    """
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONLY_FATAL
    if not layout:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="pfld-edge-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        _session(source, options)
        return onnx.load(options.optimized_model_filepath)


def _session(source: str | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ConvertError(f"onnxruntime {onnxruntime.__version__} refuses the model: {reason}") from error
