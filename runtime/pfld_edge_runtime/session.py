"""Opens a model file with onnxruntime, on the device that was asked for and with the threads that were asked for."""

import warnings
from pathlib import Path
from typing import Any

import onnxruntime

from pfld_edge_runtime.contract import CONTRACT_KEY, Contract
from pfld_edge_runtime.devices import DEVICES, DeviceWarning, device_chain, provider_options, running_device
from pfld_edge_runtime.errors import DeviceError, ModelContractError, ModelFileError

__all__ = ["check_signature", "open_session", "session_contract"]


def open_session(
    model: str | Path | bytes, device: str = "cpu", threads: int = 1, *, strict: bool = False, spinning: bool = False
) -> onnxruntime.InferenceSession:
    """Open an ONNX model.

    Args:
        model: Path of the file, or its bytes.
        device: A key of `pfld_edge_runtime.devices.DEVICES`, or ``auto`` for the first of them that really runs the
            model (never TensorRT, which compiles for long).
        threads: Threads of one call; 0 for onnxruntime's own choice.
        strict: Fail where `device` can't run the model; otherwise another device runs it and a warning says which.
        spinning: Let idle threads wait in a loop: a call with several threads starts sooner, and the processor never
            rests. Off by default: a device has better uses for its battery.

    Raises:
        DeviceError: The device is unknown; or it can't run the model, and `strict` is set.
        ModelFileError: The file is missing, or not an ONNX model that this onnxruntime opens.

    Warns:
        DeviceWarning: Another device runs the model than was asked for.
    """
    chain = device_chain(device, onnxruntime.get_available_providers())
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
        raise DeviceError(f"threads must be a whole number, 0 or more, not {threads!r}")
    source, name = _source(model)
    failure = ""  # why the first choice, if it is there at all, doesn't run the model
    for candidate in chain:
        try:
            session = _session(source, candidate, threads, spinning=spinning)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            if candidate != "cpu":  # a provider that fails may raise anything; the CPU then tells whether it's the file
                failure = failure or f"it did not start: {reason}"
                continue
            raise ModelFileError(
                f"{name} is not an ONNX model that onnxruntime {onnxruntime.__version__} opens: {reason}"
            ) from error
        running = running_device(session)
        if running == candidate:
            break
        if DEVICES[candidate] in session.get_providers():
            failure = failure or "it took few or none of the layers: try the fp32 file, or stay on the CPU"
        failure = failure or "it did not start: a library of its driver is missing, onnxruntime's log names it"
    if device not in ("auto", running):
        _complain(device, running, failure, strict=strict)
    return session


def _session(source: str | bytes, device: str, threads: int, *, spinning: bool) -> onnxruntime.InferenceSession:
    """Open a session on one device, with the CPU for the layers that it can't run."""
    options = onnxruntime.SessionOptions()
    # XNNPACK has its own thread pool; onnxruntime's page on it says to keep the session's at one.
    options.intra_op_num_threads = 1 if device == "xnnpack" else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    providers: list[Any] = [DEVICES["cpu"]]
    if device != "cpu":
        # Lets `running_device` see which layers the device took.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers.insert(0, (DEVICES[device], provider_options(device, threads)))
    # onnxruntime's own fallback prints to stdout and hides what failed; older versions ignore the argument.
    session = onnxruntime.InferenceSession(source, sess_options=options, providers=providers, enable_fallback=0)
    # Names in a damaged file may be no UTF-8: onnxruntime opens it all the same, and raises when they are read.
    for value in (*session.get_inputs(), *session.get_outputs()):
        _ = value.name, value.shape
    return session


def _complain(device: str, running: str, failure: str, *, strict: bool) -> None:
    """Raise or warn that another device runs the model."""
    # Read only now: the list of installed distributions takes longer to read than everything else here.
    from pfld_edge_runtime.wheels import missing_provider_advice

    provider = DEVICES[device]
    if provider not in onnxruntime.get_available_providers():
        reason = f"this onnxruntime has no {provider}: {missing_provider_advice(device)}"
    else:
        reason = f"onnxruntime has {provider}, but {failure}"
    if strict:
        raise DeviceError(f"device {device!r} can't run the model; {reason}")
    # The line that made the `FaceLandmarker`: past this function, open_session and the constructor.
    warnings.warn(f"device {device!r} can't run the model, {running!r} does; {reason}", DeviceWarning, stacklevel=4)


def session_contract(session: onnxruntime.InferenceSession) -> Contract | None:
    """Read the contract from an open model's metadata; None where the file carries none.

    Raises:
        ModelContractError: The contract is damaged or of a newer format.
    """
    try:
        text = session.get_modelmeta().custom_metadata_map.get(CONTRACT_KEY)
    except UnicodeDecodeError as error:
        raise ModelContractError(f"the contract is damaged, its file's metadata is not UTF-8: {error}") from error
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


def _source(model: str | Path | bytes) -> tuple[str | bytes, str]:
    """Give what onnxruntime opens, and a name for messages."""
    if isinstance(model, bytes):
        return model, "the model given as bytes"
    path = Path(model)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    return str(path), str(path)
