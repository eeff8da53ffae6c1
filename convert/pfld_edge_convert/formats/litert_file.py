"""Builds LiteRT files (``.tflite``): tensors, operators and metadata by the FlatBuffers schema of ``ai-edge-litert``.

Schema: tensorflow/compiler/mlir/lite/schema/schema.fbs. Quantization: "LiteRT 8-bit quantization specification".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float32Array

_SCHEMA_VERSION = 3
_ALIGNMENT = 16
"""Of constants, bytes: the schema asks for it, and processors that read 32 bits at once need it."""

_TYPES = {"float32": "FLOAT32", "int8": "INT8", "uint8": "UINT8", "int16": "INT16", "int32": "INT32", "int64": "INT64"}

_MINIMUM_RUNTIME = "1.14.0"
"""Of TensorFlow Lite: the first with per-channel int8 convolutions."""

_FIRST_INT8 = frozenset({"HARD_SWISH", "RELU", "RESHAPE", "SOFTMAX"})
"""Operators whose first version takes int8; of the others it is the second, but for these."""

_VERSIONS = {
    ("CONV_2D", "int8"): 3,
    ("DEPTHWISE_CONV_2D", "int8"): 3,
    ("FULLY_CONNECTED", "int8"): 4,
    ("FULLY_CONNECTED", "int16"): 7,
    ("ADD", "int16"): 3,
    ("DEQUANTIZE", "int16"): 3,
    ("QUANTIZE", "int16"): 3,
    ("QUANTIZE", "uint8"): 2,
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """What the integers of a tensor stand for: scale * (integer - zero point); one scale, or one along `axis`."""

    scales: Float32Array
    zero_point: int = 0
    axis: int = 0

    @classmethod
    def of(cls, scale: float, zero_point: int) -> "Quantization":
        """One scale for the whole tensor."""
        return cls(np.array([scale], np.float32), zero_point)


class LiteRTFile:
    """A file with one graph; tensors and operators are numbered in the order in which they are added."""

    def __init__(self) -> None:
        """Begin an empty file; needs the package ``ai-edge-litert``."""
        from ai_edge_litert import schema_py_generated

        self._schema: Any = schema_py_generated
        # By convention buffer 0 is empty: tensors that are computed have it.
        self._buffers: list[Any] = [self._schema.BufferT()]
        self._tensors: list[Any] = []
        self._kinds: list[str] = []
        self._operators: list[Any] = []
        self._codes: dict[tuple[str, int], int] = {}

    def tensor(
        self, name: str, shape: Sequence[int], kind: str, quantization: Quantization | None = None, buffer: int = 0
    ) -> int:
        """Add a tensor of numpy's type `kind` that an operator computes, or the graph's input; give its number."""
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape = name, np.array(shape, np.int32)
        tensor.type, tensor.buffer = getattr(self._schema.TensorType, _TYPES[kind]), buffer
        tensor.hasRank = True
        tensor.quantization = self._schema.QuantizationParametersT()
        if quantization is not None:
            tensor.quantization.scale = quantization.scales
            tensor.quantization.zeroPoint = np.full(len(quantization.scales), quantization.zero_point, np.int64)
            tensor.quantization.quantizedDimension = quantization.axis
        self._tensors.append(tensor)
        self._kinds.append(kind)
        return len(self._tensors) - 1

    def like(self, number: int, name: str, shape: Sequence[int], value: NDArray[np.generic] | None = None) -> int:
        """Add a tensor of the type and quantization of another, in another shape; with a value, a constant."""
        other = self._tensors[number]
        buffer = 0 if value is None else self._buffer(value.tobytes())
        made = self.tensor(name, shape, self._kinds[number], buffer=buffer)
        self._tensors[made].quantization = other.quantization
        return made

    def constant(self, name: str, value: NDArray[np.generic], quantization: Quantization | None = None) -> int:
        """Add a constant tensor; give its number."""
        return self.tensor(name, value.shape, value.dtype.name, quantization, self._buffer(value.tobytes()))

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        output: int,
        options: str = "",
        **values: Any,  # noqa: ANN401
    ) -> None:
        """Add an operator of the schema's ``BuiltinOperator``; `options` names their table, e.g. ``Conv2DOptions``."""
        schema = self._schema
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(kind, self._kinds[inputs[0]])
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, f"{options}T")()
            for name, value in values.items():
                setattr(operator.builtinOptions, name, value)
        self._operators.append(operator)

    def number(self, table: str, name: str) -> int:
        """Number of a name in one of the schema's enumerations, e.g. ``Padding``, ``SAME``."""
        return int(getattr(getattr(self._schema, table), name))

    def written(self, inputs: Sequence[int], outputs: Sequence[int], metadata: Mapping[str, str]) -> bytes:
        """Give the file's bytes; inputs and outputs are numbers of tensors, metadata texts by name."""
        import flatbuffers

        schema = self._schema
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.name, graph.tensors, graph.operators = "main", self._tensors, self._operators
        graph.inputs, graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        model.version, model.description = _SCHEMA_VERSION, "pfld-edge"
        model.subgraphs, model.operatorCodes = [graph], [self._packed_code(*code) for code in self._codes]
        texts = {"min_runtime_version": _MINIMUM_RUNTIME.ljust(16, "\0"), **metadata}
        model.metadata = [self._metadata(name, text) for name, text in texts.items()]
        model.buffers = self._buffers
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _code(self, kind: str, read: str) -> int:
        version = _VERSIONS.get((kind, read), 2 if read == "int8" and kind not in _FIRST_INT8 else 1)
        return self._codes.setdefault((kind, version), len(self._codes))

    def _packed_code(self, kind: str, version: int) -> Any:  # noqa: ANN401
        code = self._schema.OperatorCodeT()
        code.builtinCode, code.version = getattr(self._schema.BuiltinOperator, kind), version
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        return code

    def _metadata(self, name: str, text: str) -> Any:  # noqa: ANN401
        entry = self._schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(text.encode())
        return entry

    def _buffer(self, content: bytes) -> int:
        self._buffers.append(_Buffer(self._schema, content))
        return len(self._buffers) - 1


class _Buffer:
    """A constant's bytes, aligned as the schema asks for; the generated class aligns to single bytes."""

    def __init__(self, schema: Any, content: bytes) -> None:  # noqa: ANN401
        self._schema, self._content = schema, content

    def Pack(self, builder: Any) -> int:  # noqa: ANN401, N802 - the generated classes' name
        builder.StartVector(1, len(self._content), _ALIGNMENT)
        builder.head -= len(self._content)
        builder.Bytes[builder.head : builder.head + len(self._content)] = self._content
        data = builder.EndVector()
        self._schema.BufferStart(builder)
        self._schema.BufferAddData(builder, data)
        return int(self._schema.BufferEnd(builder))
