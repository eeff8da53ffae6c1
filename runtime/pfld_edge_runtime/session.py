"""Opens a model file with onnxruntime, on the device that was asked for and with the threads that were asked for."""

from pathlib import Path
from typing import Any

import onnxruntime

from pfld_edge_runtime.contract import CONTRACT_KEY, Contract
from pfld_edge_runtime.errors import DeviceError, ModelContractError, ModelFileError

__all__ = ["open_session", "session_contract"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(model: str | Path | bytes, device: str = "cpu", threads: int = 1) -> onnxruntime.InferenceSession:
    """Open an ONNX model.

    Args:
        model: Path of the file, or its bytes.
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where this build of onnxruntime offers it.
        threads: Threads of one call; 0 for onnxruntime's own choice. Threads never spin while they wait: a device
            has better uses for its battery.

    Raises:
        DeviceError: The device is unknown, or this build of onnxruntime lacks it.
        ModelFileError: The file is missing, or not an ONNX model that this onnxruntime opens.
    """
    providers = _providers(device)
    if threads < 0:
        raise DeviceError(f"threads must be 0 or more, not {threads}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source, name = _source(model)
    try:
        session = onnxruntime.InferenceSession(source, sess_options=options, providers=providers)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(
            f"{name} is not an ONNX model that onnxruntime {onnxruntime.__version__} opens: {reason}"
        ) from error
    if providers[0] not in session.get_providers():
        raise DeviceError(f"onnxruntime could not start {providers[0]}; check the driver, or use device='cpu'")
    return session


def session_contract(session: onnxruntime.InferenceSession) -> Contract | None:
    """Read the contract from an open model's metadata; None where the file carries none.

    Raises:
        ModelContractError: The contract is damaged or of a newer format.
    """
    text = session.get_modelmeta().custom_metadata_map.get(CONTRACT_KEY)
    return None if text is None else Contract.from_json(text)


def check_signature(session: onnxruntime.InferenceSession, contract: Contract) -> None:
    """Check that the network's input and output have the shapes that the contract promises.

    Raises:
        ModelContractError: They differ, or the file is an end-to-end graph.
    """
    if contract.end_to_end:
        raise ModelContractError(
            "the model is an end-to-end graph, which cuts faces itself: feed onnxruntime its `image` and `boxes`, or "
            "open the file without .e2e in its name"
        )
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelContractError(
            f"the network must have one input and one output; found {len(inputs)} and {len(outputs)}"
        )
    size = contract.input_size
    expected: list[Any] = [3, size, size] if contract.layout == "NCHW" else [size, size, 3]
    if list(inputs[0].shape[1:]) != expected:
        raise ModelContractError(
            f"the contract promises an input of (N, {expected}), the network has {inputs[0].shape}"
        )
    batch = inputs[0].shape[0]
    if isinstance(batch, int) and batch != 1:
        raise ModelContractError(f"the network takes exactly {batch} faces a call: export it with a dynamic batch")
    dtype = "tensor(float)" if contract.input_dtype == "float32" else "tensor(uint8)"
    if inputs[0].type != dtype:
        raise ModelContractError(
            f"the contract promises {contract.input_dtype} input, the network has {inputs[0].type}"
        )
    count = 2 * contract.landmarks.num_landmarks
    if list(outputs[0].shape[1:]) != [count]:
        raise ModelContractError(f"the contract promises {count} outputs a face, the network has {outputs[0].shape}")


def _providers(device: str) -> list[str]:
    available = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if _PROVIDERS["cuda"] in available else "cpu"
    if device not in _PROVIDERS:
        raise DeviceError(f"unknown device {device!r}; known: {', '.join(_PROVIDERS)}, auto")
    if _PROVIDERS[device] not in available:
        raise DeviceError(f"this onnxruntime has no {_PROVIDERS[device]}: install onnxruntime-gpu, or use device='cpu'")
    return list(dict.fromkeys([_PROVIDERS[device], "CPUExecutionProvider"]))


def _source(model: str | Path | bytes) -> tuple[str | bytes, str]:
    """Give what onnxruntime opens, and a name for messages."""
    if isinstance(model, bytes):
        return model, "the model given as bytes"
    path = Path(model)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    return str(path), str(path)
