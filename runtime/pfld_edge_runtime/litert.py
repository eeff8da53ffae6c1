"""Runs LiteRT files (``.tflite``) with the packages ai-edge-litert or tflite-runtime, whichever is installed."""

import importlib
import struct
from collections.abc import Callable
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.contract import CONTRACT_KEY, Contract
from pfld_edge_runtime.errors import DeviceError, MissingPackageError, ModelContractError, ModelFileError
from pfld_edge_runtime.session import LITERT_IDENTIFIER

_INTERPRETERS = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")

# Places of fields in the tables of LiteRT's FlatBuffers schema (schema.fbs).
_MODEL_BUFFERS, _MODEL_METADATA = 4, 6
_METADATA_NAME, _METADATA_BUFFER = 0, 1
_BUFFER_DATA = 0


def litert_contract(content: bytes) -> Contract | None:
    """Read the contract from a file's metadata; None where it carries none, an error where it is damaged."""
    if content[4:8] != LITERT_IDENTIFIER:
        raise ModelFileError("the model is not a LiteRT file: it lacks the identifier TFL3")
    try:
        text = _metadata(content, CONTRACT_KEY)
    except (struct.error, IndexError, ValueError) as error:
        raise ModelFileError(f"the LiteRT file is truncated or damaged: {error}") from error
    return None if text is None else Contract.from_json(text)


def litert_function(
    content: bytes, contract: Contract, device: str = "cpu", threads: int = 1
) -> Callable[[NDArray[np.generic]], NDArray[np.float32]]:
    """Open a network, and give the function that runs it on one prepared face, ``(1, S, S, 3)``.

    Raises:
        MissingPackageError: Neither package is installed.
        DeviceError: The device is neither ``cpu`` nor ``auto``.
        ModelFileError: The interpreter refuses the file.
        ModelContractError: The contract contradicts the network.
    """
    if device not in ("cpu", "auto"):
        raise DeviceError(f"a LiteRT file runs on the device 'cpu', not on {device!r}: give the ONNX file for that")
    interpreter = _interpreter_class()
    try:
        opened = interpreter(model_content=content, num_threads=threads or None)
        opened.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(f"the LiteRT file can't be opened: {' '.join(str(error).split())[:200]}") from error
    _check_signature(opened, contract)
    source, result = opened.get_input_details()[0]["index"], opened.get_output_details()[0]["index"]
    lock = Lock()

    def run(prepared: NDArray[np.generic]) -> NDArray[np.float32]:
        # An interpreter has one set of tensors: calls from several threads must take turns.
        with lock:
            opened.set_tensor(source, prepared)
            opened.invoke()
            return np.array(opened.get_tensor(result), np.float32)

    return run


def _interpreter_class() -> Any:  # noqa: ANN401 - of a package that need not be there
    name = next((name for name in _INTERPRETERS if find_spec(name.partition(".")[0])), None)
    if name is None:
        raise MissingPackageError("LiteRT files (.tflite) need the package ai-edge-litert: pip install ai-edge-litert")
    return importlib.import_module(name).Interpreter


def _check_signature(opened: Any, contract: Contract) -> None:  # noqa: ANN401
    inputs, outputs = opened.get_input_details(), opened.get_output_details()
    size, count = contract.input_size, 2 * contract.landmarks.num_landmarks
    expected = [1, size, size, 3] if contract.layout == "NHWC" else [1, 3, size, size]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelContractError(f"the network must have one input and one output; found {len(inputs), len(outputs)}")
    if list(inputs[0]["shape"]) != expected or inputs[0]["dtype"] != np.dtype(contract.input_dtype):
        raise ModelContractError(
            f"the contract promises {contract.input_dtype} input of {expected}, the network has "
            f"{np.dtype(inputs[0]['dtype'])} of {list(inputs[0]['shape'])}"
        )
    if int(np.prod(outputs[0]["shape"])) != count or outputs[0]["dtype"] != np.float32:
        raise ModelContractError(
            f"the contract promises {count} float32 outputs, the network has "
            f"{np.dtype(outputs[0]['dtype'])} of {list(outputs[0]['shape'])}"
        )


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
