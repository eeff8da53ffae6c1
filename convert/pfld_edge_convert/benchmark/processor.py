"""The processor's measured peak, how much of it a network uses (roofline), and the machine's description.

The peak comes from products of large matrices, timed through onnxruntime itself. The share of this peak says how well
a network's shapes suit the kernels that run it; a data sheet's peak is one that no kernel reaches, and depends on the
clock of the moment. Roofline: Williams et al., CACM 52, 2009. docs/benchmarking.md explains the fields of the records.
"""

import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import ArrayLike, NDArray
from onnx import helper

from pfld_edge_convert.model_file import optimized_graph
from pfld_edge_convert.model_stats import model_stats
from pfld_edge_convert.passes.base import Nodes
from pfld_edge_convert.passes.canonical_form import with_input_shapes
from pfld_edge_runtime.device_check import cpu_features
from pfld_edge_runtime.session import open_session

_SIDE = 384
_REPEATS = 40
_COPIED = 1 << 23
_INTEGER = frozenset({"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger"})


@dataclass(frozen=True, slots=True)
class Peak:
    """The best of so many threads: 10^9 multiply-accumulates a second of matrix products, 10^9 bytes a second."""

    threads: int
    float_gmacs: float
    int8_gmacs: float
    bandwidth_gbs: float

    def best(self, other: "Peak") -> "Peak":
        """Keep the better of two measurements, figure by figure: noise only ever lowers them."""
        return Peak(*map(max, astuple(self), astuple(other)))


def measure_peak(threads: int) -> Peak:
    """Measure float32 ``MatMul``, uint8 by int8 ``QGemm`` and ``Neg`` of 32 MB; takes a fraction of a second."""
    random, moved = np.random.default_rng(0), np.zeros(_COPIED, np.float32)
    floats = random.normal(size=(_SIDE, _SIDE)).astype(np.float32)
    small = random.integers(0, 100, (_SIDE, _SIDE)).astype(np.uint8)
    scale, zero = np.float32(1 / 255), np.uint8(0)
    rest = (scale, zero, small.astype(np.int8), scale, np.int8(0), "", np.float32(100), zero)
    macs = _SIDE**3 / 1e9
    return Peak(
        threads,
        macs / _fastest(threads, _REPEATS, "MatMul", floats, floats),
        macs / _fastest(threads, _REPEATS, "QGemm", small, *rest, domain="com.microsoft"),
        2 * moved.nbytes / 1e9 / _fastest(threads, 10, "Neg", moved),
    )


def _fastest(
    threads: int, repeats: int, kind: str, source: NDArray[Any], *constants: ArrayLike | str, domain: str = ""
) -> float:
    """Seconds of the fastest call of an operator, its output in memory that is there already."""
    op, dtype = Nodes("", ["y"]), helper.np_dtype_to_tensor_dtype(source.dtype)
    getattr(op, kind)("x", *constants, output="y", domain=domain)
    ends = [helper.make_tensor_value_info(name, dtype, source.shape) for name in "xy"]
    graph = helper.make_graph(op.nodes, "peak", ends[:1], ends[1:], [*op.constants.values()])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
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


@dataclass(frozen=True, slots=True)
class Work:
    """What a network has to do for one face; `weight_bytes` are all constants of the graph as it runs."""

    float_macs: int
    int8_macs: int
    parameters: int
    weight_bytes: int

    @property
    def macs(self) -> int:
        """All multiply-accumulates of one face."""
        return self.float_macs + self.int8_macs


@dataclass(frozen=True, slots=True)
class Roofline:
    """Where a batch stands: `bytes_moved` as if there were no cache, `share_of_peak` the ideal over the measured time.

    From the intensity (multiply-accumulates a byte) `ridge` on, arithmetic and not memory sets this processor's limit.
    """

    macs: int
    bytes_moved: int
    intensity: float
    ridge: float
    ideal_ms: float
    share_of_peak: float


def work_of(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]]) -> Work:
    """Count what a model does for inputs of the feed's shapes, in the form in which onnxruntime runs it."""
    fixed = with_input_shapes(model, {name: values.shape for name, values in feed.items()})
    optimized = optimized_graph(fixed, layout=False)
    counted = model_stats(fixed)
    integer = sum(layer.macs for layer in model_stats(optimized).layers if layer.op_type in _INTEGER)
    integer = min(integer, counted.macs)
    weight_bytes = sum(
        prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in optimized.graph.initializer
    )
    return Work(counted.macs - integer, integer, counted.parameters, weight_bytes)


def roofline(
    work: Work, faces: int, activation_bytes: int, milliseconds: float, peak: Peak, *, calls: int = 1
) -> Roofline:
    """Put a measured batch under the processor's roof.

    The work is of one face, the activation bytes of one call, the milliseconds of the batch, the peak of its threads;
    each of the batch's calls reads the constants anew.
    """
    macs, moved = work.macs * faces, calls * (work.weight_bytes + activation_bytes)
    ideal = faces * (work.float_macs / peak.float_gmacs + work.int8_macs / peak.int8_gmacs) / 1e6
    # What the processor does a second while it works on this network's mix of float and integer.
    roof = macs / ideal * 1e3 if ideal else 0.0
    intensity, share = macs / moved if moved else 0.0, ideal / milliseconds if milliseconds else 0.0
    return Roofline(macs, moved, intensity, roof / (peak.bandwidth_gbs * 1e9), ideal, share)


@dataclass(frozen=True, slots=True)
class Environment:
    """Where the figures were taken; None where the system doesn't tell."""

    processor: str
    cpu_features: tuple[str, ...] | None
    cores: int
    load: float | None
    system: str
    python: str
    onnxruntime: str
    peaks: tuple[Peak, ...]


def environment(peaks: Sequence[Peak], load: float | None) -> Environment:
    """Describe this machine; the load is that from before the benchmark added its own."""
    return Environment(
        processor=_processor(),
        cpu_features=cpu_features(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        load=load,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
        peaks=tuple(peaks),
    )


def load_average() -> float | None:
    """Processes that wanted a core in the last minute; None where the system doesn't tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
