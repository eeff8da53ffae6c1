"""What a processor's cores can do at most: products of large matrices, timed through onnxruntime itself.

Share of this peak says how well a network's shapes suit the kernels that run it; a peak from a data sheet would blame
the network for what no kernel reaches, and would need to know the clock of the moment.
"""

import time
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_runtime.session import open_session

__all__ = ["Peak", "measure_peak"]

_SIDE = 384
_REPEATS = 40
_COPIED = 1 << 23


@dataclass(frozen=True, slots=True)
class Peak:
    """The best that was seen of so many threads.

    Attributes:
        threads: onnxruntime's threads.
        float_gmacs: 10^9 multiply-accumulates a second of a float32 product of matrices.
        int8_gmacs: The same of uint8 by int8 (``QGemm``).
        bandwidth_gbs: 10^9 bytes a second, read and written, of an operator on 32 MB that only moves numbers.
    """

    threads: int
    float_gmacs: float
    int8_gmacs: float
    bandwidth_gbs: float

    def best(self, other: "Peak") -> "Peak":
        """Keep the better of two measurements, figure by figure: noise only ever lowers them."""
        return Peak(
            self.threads,
            max(self.float_gmacs, other.float_gmacs),
            max(self.int8_gmacs, other.int8_gmacs),
            max(self.bandwidth_gbs, other.bandwidth_gbs),
        )


def measure_peak(threads: int) -> Peak:
    """Measure; takes a fraction of a second."""
    macs = _SIDE**3 / 1e9
    random = np.random.default_rng(0)
    floats = random.normal(size=(_SIDE, _SIDE)).astype(np.float32)
    small = random.integers(0, 100, (_SIDE, _SIDE))
    moved = np.zeros(_COPIED, np.float32)
    return Peak(
        threads,
        macs / _fastest(_float_product(floats), floats, threads, _REPEATS),
        macs / _fastest(_int8_product(small.astype(np.int8)), small.astype(np.uint8), threads, _REPEATS),
        2 * moved.nbytes / 1e9 / _fastest(_negation(), moved, threads, 10),
    )


def _float_product(weight: np.ndarray) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    return _model(node, {"weight": weight}, TensorProto.FLOAT, TensorProto.FLOAT, 2)


def _int8_product(weight: np.ndarray) -> onnx.ModelProto:
    scale, zero = np.float32(1 / 255), np.uint8(0)
    constants = {
        "scale": np.array(scale),
        "zero": np.array(zero),
        "weight": weight,
        "weight_zero": np.array(0, np.int8),
        "y_scale": np.array(np.float32(100)),
    }
    names = ["x", "scale", "zero", "weight", "scale", "weight_zero", "", "y_scale", "zero"]
    node = helper.make_node("QGemm", names, ["y"], domain="com.microsoft")
    return _model(node, constants, TensorProto.UINT8, TensorProto.UINT8, 2)


def _negation() -> onnx.ModelProto:
    return _model(helper.make_node("Neg", ["x"], ["y"]), {}, TensorProto.FLOAT, TensorProto.FLOAT, 1)


def _model(
    node: onnx.NodeProto, constants: dict[str, np.ndarray], source: int, result: int, rank: int
) -> onnx.ModelProto:
    axes = ["a", "b"][:rank]
    graph = helper.make_graph(
        [node],
        "peak",
        [helper.make_tensor_value_info("x", source, axes)],
        [helper.make_tensor_value_info("y", result, axes)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _fastest(model: onnx.ModelProto, source: np.ndarray, threads: int, repeats: int) -> float:
    """Seconds of the fastest call, its output in memory that is there already."""
    session = open_session(model.SerializeToString(), threads=threads)
    binding = session.io_binding()
    binding.bind_cpu_input("x", source)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    result = binding.copy_outputs_to_cpu()[0]
    binding.bind_output("y", "cpu", 0, result.dtype, result.shape, result.ctypes.data)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        times.append(time.perf_counter() - start)
    return min(times)
