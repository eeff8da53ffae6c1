"""How much of what the processor can do a network gets out of it (Williams et al., "Roofline", CACM 52, 2009)."""

from dataclasses import dataclass

import onnx

from pfld_edge_convert.benchmark.peak import Peak
from pfld_edge_convert.benchmark.subject import Feed
from pfld_edge_convert.input_shapes import with_input_shapes
from pfld_edge_convert.model_stats import model_stats
from pfld_edge_convert.optimized_graph import optimized_graph

__all__ = ["Roofline", "Work", "roofline", "work_of"]

_INTEGER = frozenset({"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger"})


@dataclass(frozen=True, slots=True)
class Work:
    """What a network has to do.

    Attributes:
        float_macs: Multiply-accumulates in floating point, for one face.
        int8_macs: Those in 8-bit integers.
        parameters: Weights and biases.
        weight_bytes: All constants of the graph as it runs.
    """

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
    """Where a batch stands.

    Attributes:
        macs: Multiply-accumulates of the batch.
        bytes_moved: Constants once, and every activation that a node writes or reads, as if no cache kept any.
        intensity: Multiply-accumulates a byte.
        ridge: The intensity from which on arithmetic, not memory, sets this processor's limit for this network.
        ideal_ms: Time of the multiply-accumulates alone at the measured peak, each kind at its own.
        share_of_peak: The ideal time over the measured one, 0 to 1.
    """

    macs: int
    bytes_moved: int
    intensity: float
    ridge: float
    ideal_ms: float
    share_of_peak: float


def work_of(model: onnx.ModelProto, feed: Feed) -> Work:
    """Count what a model does for inputs of certain shapes, in the form in which onnxruntime runs it.

    Args:
        model: As the file has it; left as it is.
        feed: Inputs whose shapes count.
    """
    fixed = with_input_shapes(model, {name: values.shape for name, values in feed.items()})
    optimized = optimized_graph(fixed, layout=False)
    counted = model_stats(fixed)
    integer = sum(layer.macs for layer in model_stats(optimized).layers if layer.op_type in _INTEGER)
    return Work(
        counted.macs - min(integer, counted.macs),
        min(integer, counted.macs),
        counted.parameters,
        sum(_bytes(tensor) for tensor in optimized.graph.initializer),
    )


def roofline(
    work: Work, faces: int, activation_bytes: int, milliseconds: float, peak: Peak, *, calls: int = 1
) -> Roofline:
    """Put a measured batch under the processor's roof.

    Args:
        work: Of one face.
        faces: In the batch.
        activation_bytes: That the nodes of one call write and read.
        milliseconds: Of the batch.
        peak: Of as many threads as the batch had.
        calls: That the batch took; each reads the constants anew.
    """
    macs, moved = work.macs * faces, calls * (work.weight_bytes + activation_bytes)
    ideal = faces * (work.float_macs / peak.float_gmacs + work.int8_macs / peak.int8_gmacs) / 1e6
    # What the processor does a second while it works on this network's mix of float and integer.
    roof = macs / ideal * 1e3 if ideal else 0.0
    return Roofline(
        macs,
        moved,
        macs / moved if moved else 0.0,
        roof / (peak.bandwidth_gbs * 1e9),
        ideal,
        ideal / milliseconds if milliseconds else 0.0,
    )


def _bytes(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
