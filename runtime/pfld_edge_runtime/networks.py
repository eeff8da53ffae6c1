"""Runs networks with other packages than onnxruntime, where they are installed: an adapter, `Network`, for each.

LiteRT files (``.tflite``) run with ai-edge-litert or tflite-runtime, and with tflite-micro as a microcontroller
computes them; ONNX files with openvino.
"""

import importlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float32Array
from pfld_edge_runtime.contract import CONTRACT_KEY, Contract
from pfld_edge_runtime.errors import DeviceError, MissingPackageError, ModelContractError, ModelFileError
from pfld_edge_runtime.session import LITERT_IDENTIFIER, is_litert

TFLITE_MICRO = "tflite-micro"
"""The device on which a LiteRT file runs in TensorFlow Lite Micro."""

_INTERPRETERS = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")

# Places of fields in the tables of LiteRT's FlatBuffers schema (schema.fbs).
_MODEL_BUFFERS, _MODEL_METADATA = 4, 6
_METADATA_NAME, _METADATA_BUFFER = 0, 1
_BUFFER_DATA = 0

_LITERT_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_ARENA = 8 << 20
"""Bytes for TensorFlow Lite Micro, on this PC."""

Run = Callable[[NDArray[np.generic]], Float32Array]


@dataclass(frozen=True, slots=True)
class Network:
    """A network opened in a runtime: its name, and the function that runs it on one prepared face, ``(1, ...)``.

    `layers` counts the convolutions and products that compute in integers there, and all of them.
    """

    runtime: str
    run: Run
    layers: Callable[[], tuple[int, int]]


def litert_contract(content: bytes) -> Contract | None:
    """Read the contract from a file's metadata; None where it carries none, an error where it is damaged."""
    if content[4:8] != LITERT_IDENTIFIER:
        raise ModelFileError("the model is not a LiteRT file: it lacks the identifier TFL3")
    try:
        text = _metadata(content, CONTRACT_KEY)
    except (struct.error, IndexError, ValueError) as error:
        raise ModelFileError(f"the LiteRT file is truncated or damaged: {error}") from error
    return None if text is None else Contract.from_json(text)


def open_network(path: Path, device: str, threads: int = 1) -> Network:
    """Open a LiteRT file that carries its contract, or an ONNX file with OpenVINO; errors are those of both."""
    if not is_litert(path):
        return open_openvino(str(path), threads)
    content = path.read_bytes()
    contract = litert_contract(content)
    if contract is None:
        raise ModelContractError(f"{path} carries no contract: convert it with pfld-edge")
    return open_litert(content, contract, device, threads)


def open_litert(content: bytes, contract: Contract, device: str = "cpu", threads: int = 1) -> Network:
    """Open a LiteRT file on the device ``cpu`` (or ``auto``), or ``tflite-micro`` for TensorFlow Lite Micro on this PC.

    Raises:
        MissingPackageError: The package isn't installed.
        DeviceError: The device is another one.
        ModelFileError: The interpreter refuses the file.
        ModelContractError: The contract contradicts the network.
    """
    if device not in ("cpu", "auto", TFLITE_MICRO):
        raise DeviceError(f"a LiteRT file runs on the device 'cpu', not on {device!r}: give the ONNX file for that")
    try:
        if device == TFLITE_MICRO:
            return _micro(content, contract)
        opened = _interpreter_module().Interpreter(model_content=content, num_threads=threads or None)
        opened.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(f"the LiteRT file can't be opened: {' '.join(str(error).split())[:200]}") from error
    _check_signature(opened.get_input_details(), opened.get_output_details(), contract)
    source, result = opened.get_input_details()[0]["index"], opened.get_output_details()[0]["index"]

    def run(prepared: NDArray[np.generic]) -> Float32Array:
        opened.set_tensor(source, prepared)
        opened.invoke()
        return np.array(opened.get_tensor(result), np.float32)

    return Network("LiteRT", _in_turns(run), partial(_litert_layers, content))


def open_openvino(model: str | bytes, threads: int = 1) -> Network:
    """Open an ONNX file with the package openvino, for one face a call; 0 threads for OpenVINO's own choice.

    Raises:
        MissingPackageError: The package isn't installed.
        DeviceError: OpenVINO refuses the file.
    """
    if not find_spec("openvino"):
        raise MissingPackageError("the device 'openvino' needs the package openvino: pip install openvino")
    openvino: Any = importlib.import_module("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        core = openvino.Core()
        network = core.read_model(model)
        network.reshape([1, *list(network.inputs[0].partial_shape)[1:]])
        compiled = core.compile_model(network, "CPU", settings)
    except RuntimeError as error:
        raise DeviceError(
            f"OpenVINO {openvino.__version__.partition('-')[0]} can't run the model; give it the float file or the qdq "
            f"file (convert --format qdq): {' '.join(str(error).split())[:200]}"
        ) from error
    request = compiled.create_infer_request()
    run = _in_turns(lambda prepared: np.array(request.infer({0: prepared})[0], np.float32))
    return Network("OpenVINO", run, partial(_openvino_layers, compiled))


def _micro(content: bytes, contract: Contract) -> Network:
    if not find_spec("tflite_micro"):
        raise MissingPackageError("TensorFlow Lite Micro needs the package tflite-micro: pip install tflite-micro")
    module = importlib.import_module("tflite_micro.python.tflite_micro.runtime")
    opened = module.Interpreter.from_bytes(content, arena_size=_ARENA)
    _check_signature([opened.get_input_details(0)], [opened.get_output_details(0)], contract)

    def run(prepared: NDArray[np.generic]) -> Float32Array:
        opened.set_input(prepared, 0)
        opened.invoke()
        return np.array(opened.get_output(0), np.float32)

    return Network("TFLite Micro", _in_turns(run), partial(_litert_layers, content))


def _in_turns(run: Run) -> Run:
    """These runtimes have one set of tensors: calls from several threads must take turns."""
    lock = Lock()

    def alone(prepared: NDArray[np.generic]) -> Float32Array:
        with lock:
            return run(prepared)

    return alone


def _litert_layers(content: bytes) -> tuple[int, int]:
    module = _interpreter_module()
    # As the file has them: a delegate shows none of the layers that it took.
    plain = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    opened = module.Interpreter(model_content=content, experimental_op_resolver_type=plain)
    kinds = {tensor["index"]: tensor["dtype"] for tensor in opened.get_tensor_details()}
    layers = [kinds[item["inputs"][0]] for item in opened._get_ops_details() if item["op_name"] in _LITERT_LAYERS]
    return sum(kind in (np.int8, np.int16) for kind in layers), len(layers)


def _openvino_layers(compiled: Any) -> tuple[int, int]:  # noqa: ANN401
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    layers = [node for node in nodes if node["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")]
    return sum(node["runtimePrecision"].astype(str) in ("u8", "i8") for node in layers), len(layers)


def _interpreter_module() -> Any:  # noqa: ANN401 - of a package that need not be there
    name = next((name for name in _INTERPRETERS if find_spec(name.partition(".")[0])), None)
    if name is None:
        raise MissingPackageError("LiteRT files (.tflite) need the package ai-edge-litert: pip install ai-edge-litert")
    return importlib.import_module(name)


def _check_signature(
    inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]], contract: Contract
) -> None:
    if len(inputs) != 1 or len(outputs) != 1 or outputs[0]["dtype"] != np.float32:
        raise ModelContractError(
            f"the network must have one input and one float32 output; found {len(inputs)} and {len(outputs)}"
        )
    values = int(np.prod(outputs[0]["shape"]))
    contract.check_signature(list(inputs[0]["shape"]), np.dtype(inputs[0]["dtype"]).name, [1, values])


def _metadata(content: bytes, name: str) -> str | None:
    """A text of the file's metadata; see "FlatBuffers Internals" for the layout of tables and vectors."""
    model = _offset(content, 0)
    buffers = _elements(content, _field(content, model, _MODEL_BUFFERS))
    for entry in _elements(content, _field(content, model, _MODEL_METADATA)):
        label = _field(content, entry, _METADATA_NAME)
        if label is None or _bytes(content, label) != name.encode():
            continue
        place = _field(content, entry, _METADATA_BUFFER)
        number = 0 if place is None else struct.unpack_from("<I", content, place)[0]
        data = _field(content, buffers[number], _BUFFER_DATA)
        return None if data is None else _bytes(content, data).decode()
    return None


def _offset(content: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", content, place)[0])


def _field(content: bytes, table: int, number: int) -> int | None:
    """Place of a table's field; None where it is left out."""
    directory = table - struct.unpack_from("<i", content, table)[0]
    entry = 4 + 2 * number
    if directory < 0 or entry >= struct.unpack_from("<H", content, directory)[0]:
        return None
    relative = struct.unpack_from("<H", content, directory + entry)[0]
    return table + relative if relative else None


def _elements(content: bytes, place: int | None) -> list[int]:
    """Places of the tables of a vector."""
    if place is None:
        return []
    vector = _offset(content, place)
    count = struct.unpack_from("<I", content, vector)[0]
    if count > len(content) // 4:
        raise ValueError("a list is longer than the file")
    return [_offset(content, vector + 4 + 4 * number) for number in range(count)]


def _bytes(content: bytes, place: int) -> bytes:
    vector = _offset(content, place)
    return content[vector + 4 : vector + 4 + struct.unpack_from("<I", content, vector)[0]]
