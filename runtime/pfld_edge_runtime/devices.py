"""Devices by name: which onnxruntime provider serves each, with which options, and which one really runs a session."""

from collections import Counter

import onnxruntime

from pfld_edge_runtime.errors import DeviceError

__all__ = ["DEVICES", "DeviceWarning", "device_chain", "provider_options", "running_device"]

CPU = "cpu"

DEVICES: dict[str, str] = {
    CPU: "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Device names and the onnxruntime execution providers behind them."""

# TensorRT is never chosen unasked: it compiles for seconds to minutes when a model opens and when a batch size is new.
_AUTO = ("cuda", "coreml", "openvino", "xnnpack", CPU)


class DeviceWarning(UserWarning):
    """The device that was asked for can't run the model; the message says what runs it instead, and the mend."""


def device_chain(device: str, available: list[str]) -> list[str]:
    """List the devices to try, best first; the last is always the CPU.

    Args:
        device: A key of `DEVICES`, or ``auto``.
        available: The providers that this build of onnxruntime has.

    Raises:
        DeviceError: No such device.
    """
    if device != "auto" and device not in DEVICES:
        raise DeviceError(f"unknown device {device!r}; known: {', '.join(DEVICES)}, auto")
    wanted: tuple[str, ...] = (device, CPU)
    if device == "auto":
        wanted = _AUTO
    elif device == "tensorrt":
        wanted = (device, "cuda", CPU)
    return [name for name in dict.fromkeys(wanted) if name == CPU or DEVICES[name] in available]


def provider_options(device: str, threads: int) -> dict[str, str]:
    """Choose the options of a device's provider (onnxruntime's pages on execution providers name them).

    Args:
        device: A key of `DEVICES`.
        threads: Threads of one call; 0 for the provider's own choice.
    """
    if device in ("cuda", "tensorrt"):
        # The default, EXHAUSTIVE, times every algorithm anew for each number of faces. TensorRT has no such option.
        return {"cudnn_conv_algo_search": "HEURISTIC"} if device == "cuda" else {}
    if threads == 0:
        return {}
    # These two bring a thread pool of their own (OpenVINO's default is 8 threads) and ignore the session's.
    return {
        "openvino": {"num_of_threads": str(threads)},
        "xnnpack": {"intra_op_num_threads": str(threads)},
    }.get(device, {})


def running_device(session: onnxruntime.InferenceSession) -> str:
    """Tell which device runs most of the network.

    A provider that loaded may still have refused every layer. onnxruntime before 1.24, or without
    ``session.record_ep_graph_assignment_info``, doesn't tell; there the first provider that loaded counts.

    Returns:
        A key of `DEVICES`, or the provider's own name where it has none.
    """
    names = {provider: device for device, provider in DEVICES.items()}
    providers = session.get_providers()
    first = str(providers[0]) if providers else DEVICES[CPU]
    if first != DEVICES[CPU]:
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
