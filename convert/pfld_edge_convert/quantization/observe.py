"""Runs a float network and shows what its tensors hold, a few faces at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.errors import CalibrationError
from pfld_edge_convert.inference import open_model
from pfld_edge_convert.passes.graph_index import drop_unused
from pfld_edge_convert.quantization.histogram import ChannelHistogram

__all__ = ["count_channels", "showing", "tensors_of"]

_CHUNK = 16
"""Most faces in one run: bounds memory to the activations of so many (some 8 MB a face for the PFLD family)."""

Batch = NDArray[np.float32]


def tensors_of(model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Batch]) -> Iterator[dict[str, Batch]]:
    """Run a network and yield the named tensors, chunk by chunk.

    Args:
        model: Float or INT8; left as it is.
        names: Tensors that nodes of the graph make.
        batches: As the network takes them.

    Yields:
        For each chunk of at most 16 faces, the tensors by name.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    outputs = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    session = open_model(shown)
    source = session.get_inputs()[0].name
    for batch in batches:
        for start in range(0, len(batch), _CHUNK):
            found = session.run(list(names), {source: batch[start : start + _CHUNK]})
            yield dict(zip(names, found, strict=True))


def count_channels(
    model: onnx.ModelProto,
    names: Sequence[str],
    batches: Iterable[Batch],
    known: Mapping[str, ChannelHistogram] | None = None,
) -> dict[str, ChannelHistogram]:
    """Count what the channels of some tensors hold over any number of faces.

    Args:
        model: Float; left as it is.
        names: The tensors.
        batches: As the network takes them.
        known: Histograms to count on with.

    Raises:
        CalibrationError: No faces.
    """
    histograms = dict(known or {})
    for tensors in tensors_of(model, names, batches):
        for name, values in tensors.items():
            if name not in histograms:
                histograms[name] = ChannelHistogram(values.shape[1])
            histograms[name].add(values)
    if not histograms and names:
        raise CalibrationError("no calibration faces: INT8 needs at least one, some 200 give steady ranges")
    return histograms


def showing(model: onnx.ModelProto, *tensors: str) -> onnx.ModelProto:
    """The part of a network that makes some tensors, with those as its outputs."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    part.graph.ClearField("output")
    part.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)
    drop_unused(part)
    return part
