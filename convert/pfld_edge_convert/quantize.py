"""Static INT8 quantization: ranges from calibration faces, nodes written by onnxruntime.quantization."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from pfld_edge_convert.errors import CalibrationError, ConvertError
from pfld_edge_convert.integer_head import use_integer_head
from pfld_edge_convert.passes.graph_index import GraphIndex, drop_unused

__all__ = ["QuantizationSettings", "float_head", "quantize"]

_CHUNK = 32
"""Most faces in one calibration run: bounds memory to the activations of so many."""


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """How a network is quantized.

    Attributes:
        per_channel: One weight scale for each output channel instead of one a layer.
        reduce_range: Weights in 7 bits, for x86 without VNNI, whose 8-bit multiply-add saturates.
        float_head: Let the last Gemm answer in float: in uint8 it would have steps of half a pixel. The Concat that
            feeds it, where there is one, stays float too, since in uint8 it rounds pooled features of four scales to
            the coarsest; without one, see `use_integer_head`.
    """

    per_channel: bool = True
    reduce_range: bool = False
    float_head: bool = True

    def describe(self) -> str:
        """Name the settings in one line, for the contract."""
        words = ["int8 static, QOperator, uint8 activations, int8 weights", "MinMax"]
        words.append("per channel" if self.per_channel else "per tensor")
        if self.reduce_range:
            words.append("7-bit weights")
        if self.float_head:
            words.append("float head")
        return ", ".join(words)


def quantize(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[np.float32]],
    settings: QuantizationSettings | None = None,
) -> onnx.ModelProto:
    """Quantize a float network in the QOperator format.

    QDQ files depend on onnxruntime's fusions: the same settings cost the published GhostOne 14 % of NME as QDQ and
    1 to 4 % as QOperator.

    Args:
        model: Optimized float network; left as it is.
        batches: ``(n, 3, S, S)`` float32 as the network takes them; read once, a batch at a time.
        settings: Defaults where None.

    Returns:
        The INT8 network, with the input and output of the float one.

    Raises:
        CalibrationError: No faces, faces of another shape, or values that aren't finite.
        ConvertError: onnxruntime can't quantize this network.
    """
    chosen = settings or QuantizationSettings()
    prepared = _named_copy(model)
    reader = _FaceReader(prepared.graph.input[0], batches)
    with tempfile.TemporaryDirectory(prefix="pfld-edge-") as folder, _quiet_logging():
        target = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                prepared,
                target,
                reader,
                quant_format=QuantFormat.QOperator,
                per_channel=chosen.per_channel,
                reduce_range=chosen.reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=float_head(prepared) if chosen.float_head else [],
                # MinMax keeps two numbers a tensor and chunk. CalibMaxIntermediateOutputs must stay away: past its
                # limit onnxruntime forgets what it has seen instead of merging it.
                calibrate_method=CalibrationMethod.MinMax,
            )
        except CalibrationError:
            raise
        except Exception as error:
            reader.require_faces()
            raise ConvertError(f"onnxruntime can't quantize the network: {str(error)[:300]}") from error
        quantized = _cleaned(onnx.load(target), model)
    if not chosen.float_head:
        return quantized
    return use_integer_head(quantized, largest_weight=63 if chosen.reduce_range else 127)


def float_head(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay in float: the Gemm that makes the output, and the Concat that feeds it."""
    index = GraphIndex(model)
    last = index.producers.get(model.graph.output[0].name)
    if last is None or last.op_type not in ("Gemm", "MatMul"):
        return []
    before = index.producers.get(last.input[0])
    return [last.name] + ([before.name] if before is not None and before.op_type == "Concat" else [])


class _FaceReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration faces to onnxruntime in chunks, and checks them."""

    def __init__(self, value: onnx.ValueInfoProto, batches: Iterable[NDArray[np.float32]]) -> None:
        self._name = value.name
        self._shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
        self._chunks = self._checked(batches)
        self._faces = 0

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Give the next chunk by the input's name; None at the end."""
        chunk = next(self._chunks, None)
        if chunk is None:
            self.require_faces()
            return None
        self._faces += len(chunk)
        return {self._name: chunk}

    def require_faces(self) -> None:
        """Raise CalibrationError where no face has been read."""
        if not self._faces:
            raise CalibrationError("no calibration faces: INT8 needs at least one, some 200 give steady ranges")

    def _checked(self, batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        for batch in batches:
            if batch.dtype != np.float32 or batch.shape[1:] != self._shape:
                expected = ", ".join(map(str, self._shape))
                raise CalibrationError(
                    f"calibration faces must be float32 of shape (n, {expected}); found {batch.dtype} {batch.shape}"
                )
            if not np.isfinite(batch).all():
                raise CalibrationError("calibration faces must be finite numbers; found NaN or infinity")
            for start in range(0, len(batch), _CHUNK):
                yield batch[start : start + _CHUNK]


def _named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy the model with a name for each node, since onnxruntime excludes nodes by name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for position, node in enumerate(copy.graph.node):
        node.name = node.name or f"{node.op_type}_{position}"
    # Else onnxruntime warns that the model was not preprocessed; simplify and the passes have done that.
    add_pre_process_metadata(copy)
    return copy


def _cleaned(quantized: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    drop_unused(quantized)
    quantized.ClearField("metadata_props")
    quantized.metadata_props.extend(original.metadata_props)
    quantized.producer_name, quantized.producer_version = original.producer_name, original.producer_version
    quantized.ir_version = original.ir_version
    return quantized


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Keep onnxruntime.quantization's remarks from the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
