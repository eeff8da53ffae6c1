"""Simplifies an exported graph with onnxsim, and uses the result."""

import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnx
import onnxsim
from numpy.typing import NDArray

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.passes.base import check_equivalence

__all__ = ["simplify"]

_TOLERANCE = 1e-5


def simplify(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> onnx.ModelProto:
    """Fold constants and known patterns.

    Args:
        model: Left as it is.
        inputs: ``(N, 3, S, S)`` samples on which onnxruntime must see no difference above 1e-5.

    Raises:
        ConvertError: onnxsim failed, or changed what the network computes.
    """
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            simplified, valid = onnxsim.simplify(model, check_n=0)
    except Exception as error:
        raise ConvertError(f"onnxsim can't simplify the model: {' '.join(str(error).split())[:300]}") from error
    if not valid:
        raise ConvertError("onnxsim says that its own result is not valid")
    check_equivalence(model, simplified, inputs, _TOLERANCE, "onnxsim")
    simplified.graph.ClearField("value_info")
    simplified.ClearField("metadata_props")  # onnxsim leaves a diary there
    simplified.metadata_props.extend(model.metadata_props)
    result: onnx.ModelProto = simplified
    return result
