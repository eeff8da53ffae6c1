"""Opens a model file with onnxruntime on a named device: execution providers, their options, and what really runs."""

import re
import sys
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnxruntime

from pfld_edge_runtime.errors import DeviceError, ModelFileError, check_counts

LITERT_IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of a LiteRT file (FlatBuffers file identifier)."""

DEVICES: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Device names and the onnxruntime execution providers behind them."""

_ORIGIN = re.compile(r"/onnxruntime_src/[^)]*\) |Load model from .*? failed: ?")
"""In onnxruntime's messages: the place in its source, and the file, which ours name."""

_MENDS = {
    "IR version": "; export it for an older version, or upgrade onnxruntime",
    "opset": "; export it with an older opset, or upgrade onnxruntime",
    "External data": "; put the file of its weights beside it",
    "rotobuf parsing": "; it is truncated or of another kind: take another copy",
    "No graph": "; it is empty or of another kind: take another copy",
}
"""What helps, by a part of onnxruntime's message."""

# `auto` never chooses TensorRT: it compiles for seconds to minutes when a model opens and when a batch size is new.
_AUTO = ("cuda", "coreml", "openvino", "xnnpack", "cpu")


_MOST_THREADS = 1024
"""More than processors have; onnxruntime would start them all."""

_CHECKPOINTS = frozenset({".pth", ".pt", ".ckpt", ".safetensors"})


class DeviceWarning(UserWarning):
    """The device that was asked for can't run the model; the message says what runs it, and how to change that."""


def check_model(model: str | Path | bytes) -> None:
    """Raise a `ModelFileError` unless a model is bytes, or the path of a file that is no checkpoint."""
    if isinstance(model, bytes):
        return
    if not isinstance(model, str | Path):
        raise ModelFileError(f"a model is the path of an ONNX file, or its bytes; found {type(model).__name__}")
    path = Path(model)
    if not path.is_file():
        raise ModelFileError(f"{model}: {'a folder, ' if path.is_dir() else ''}no such model file")
    if path.suffix.lower() in _CHECKPOINTS:
        raise ModelFileError(f"{model} is a checkpoint: `pfld-edge convert` makes an ONNX file of it")


def absolute(model: str | Path | bytes) -> Path | bytes:
    """What opens a model again, also in a process with another working folder."""
    return model if isinstance(model, bytes) else Path(model).absolute()


def is_litert(model: str | Path | bytes) -> bool:
    """Whether a model is a LiteRT file: by the identifier of its bytes, or by its name."""
    if isinstance(model, bytes):
        return model[4:8] == LITERT_IDENTIFIER
    return Path(model).suffix.lower() == ".tflite"


def has_openvino() -> bool:
    """Whether the package openvino runs ONNX files here: it is installed, and onnxruntime lacks the provider."""
    return DEVICES["openvino"] not in onnxruntime.get_available_providers() and find_spec("openvino") is not None


def open_session(
    model: str | Path | bytes, device: str = "cpu", threads: int = 1, *, strict: bool = False, spinning: bool = False
) -> onnxruntime.InferenceSession:
    """Open an ONNX model on a device; the arguments are those of `LandmarkModel.open`.

    Raises:
        DeviceError: The device is unknown; or it can't run the model, and `strict` is set.
        ModelFileError: The file is missing, or not an ONNX model that this onnxruntime opens.

    Warns:
        DeviceWarning: Another device runs the model than was asked for.
    """
    chain = device_chain(device, onnxruntime.get_available_providers())
    check_counts(DeviceError, 0, threads=threads)
    if threads > _MOST_THREADS:
        raise DeviceError(f"threads must be {_MOST_THREADS} at most, not {threads!r}")
    check_model(model)
    source = model if isinstance(model, bytes) else str(model)
    if isinstance(source, str) and source != source.encode(errors="ignore").decode():
        source = Path(source).read_bytes()  # onnxruntime takes no name that isn't UTF-8
    failure = ""  # why the first choice, if it is there at all, doesn't run the model
    for candidate in chain:
        try:
            session = _session(source, candidate, threads, spinning=spinning)
        except Exception as error:
            reason = reason_and_mend(error)
            if candidate != "cpu":  # a provider that fails may raise anything; the CPU then tells whether it's the file
                failure = failure or f"it did not start: {reason}"
                continue
            name = "the model given as bytes" if isinstance(model, bytes) else model
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
        _warn_or_raise(device, running, failure, strict=strict)
    return session


def _session(source: str | bytes, device: str, threads: int, *, spinning: bool) -> onnxruntime.InferenceSession:
    """Open a session on one device, with the CPU for the layers that it can't run."""
    # XNNPACK has its own thread pool; onnxruntime's page on it says to keep the session's at one.
    options = session_options(1 if device == "xnnpack" else threads, spinning=spinning)
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


def session_options(threads: int, *, spinning: bool = False) -> onnxruntime.SessionOptions:
    """Options of every session: threads of a call, 0 for onnxruntime's choice; no warnings; integers in QDQ files."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    # QDQ files of int8 activations run in float on x86 unless this is set.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    return options


def reason_and_mend(error: Exception) -> str:
    """Say in one line why onnxruntime refuses a model, and what helps."""
    reason = " ".join(_ORIGIN.sub("", str(error)).split())[:300]
    return reason + next((mend for sign, mend in _MENDS.items() if sign in reason), "")


def _warn_or_raise(device: str, running: str, failure: str, *, strict: bool) -> None:
    # Read only now: the list of installed distributions takes longer to read than everything else here.
    from pfld_edge_runtime.device_check import missing_provider_advice

    provider = DEVICES[device]
    if provider not in onnxruntime.get_available_providers():
        reason = f"this onnxruntime has no {provider}: {missing_provider_advice(device)}"
    else:
        reason = f"onnxruntime has {provider}, but {failure}"
    if strict:
        raise DeviceError(f"device {device!r} can't run the model; {reason}")
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("pfld_edge_runtime."):
        level, frame = level + 1, frame.f_back  # up to the caller of this package
    warnings.warn(f"device {device!r} can't run the model, {running!r} does; {reason}", DeviceWarning, stacklevel=level)


def device_chain(device: str, available: list[str]) -> list[str]:
    """List the devices to try, best first and the CPU last, of those whose providers are available."""
    if device != "auto" and (not isinstance(device, str) or device not in DEVICES):
        raise DeviceError(f"unknown device {device!r}; known: {', '.join(DEVICES)}, auto")
    wanted: tuple[str, ...] = (device, "cpu")
    if device == "auto":
        wanted = _AUTO
    elif device == "tensorrt":
        wanted = (device, "cuda", "cpu")
    return [name for name in dict.fromkeys(wanted) if name == "cpu" or DEVICES[name] in available]


def provider_options(device: str, threads: int) -> dict[str, str]:
    """Choose the options of a device's provider (onnxruntime's pages on execution providers name them)."""
    if device == "cuda":
        # The default, EXHAUSTIVE, times every algorithm anew for each number of faces. TensorRT has no such option.
        return {"cudnn_conv_algo_search": "HEURISTIC"}
    # These two bring a thread pool of their own (OpenVINO's default is 8 threads) and ignore the session's.
    option = {"openvino": "num_of_threads", "xnnpack": "intra_op_num_threads"}.get(device)
    return {option: str(threads)} if option and threads else {}


def running_device(session: onnxruntime.InferenceSession) -> str:
    """Tell which device runs most of the network: a key of `DEVICES`, or a provider's name where it has none.

    A provider that loaded may still have refused every layer. onnxruntime before 1.24, or without
    ``session.record_ep_graph_assignment_info``, doesn't tell; there the first provider that loaded counts.
    """
    names = {provider: device for device, provider in DEVICES.items()}
    providers = session.get_providers()
    first = str(providers[0]) if providers else DEVICES["cpu"]
    if first != DEVICES["cpu"]:
        layers = _layers(session)
        first = layers.most_common(1)[0][0] if layers else first
    return names.get(first, first)


def _layers(session: onnxruntime.InferenceSession) -> Counter[str]:
    """Count the layers that each provider took; empty where this onnxruntime doesn't tell."""
    count: Counter[str] = Counter()
    try:
        for part in session.get_provider_graph_assignment_info():
            count[part.ep_name] += len(part.get_nodes())
    except Exception:  # noqa: BLE001 - absent before 1.24, and an error of onnxruntime's own where it wasn't recorded
        return Counter()
    return count
