"""Which onnxruntime is installed: the wheels overwrite each other, and each brings other providers."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed_wheels", "missing_provider_advice", "wheel_clash"]

_WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "onnxruntime-silicon",
    "onnxruntime-rocm",
    "onnxruntime-training",
)

_WHEEL_OF = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "openvino": "onnxruntime-openvino"}


def installed_wheels() -> dict[str, str]:
    """List the installed distributions that bring the module ``onnxruntime``, with their versions."""
    found: dict[str, str] = {}
    for name in _WHEELS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def wheel_clash(installed: dict[str, str], wanted: str = "") -> str | None:
    """Say what is wrong where two wheels share the folder ``onnxruntime``: the last one installed has won.

    Args:
        installed: As from `installed_wheels`.
        wanted: The wheel that should stay; otherwise the first one that is not plain ``onnxruntime``.

    Returns:
        One sentence with the mend; None where there is at most one wheel.
    """
    if len(installed) < 2:
        return None
    keep = wanted or next(name for name in installed if name != "onnxruntime")
    both = " and ".join(f"{name} {number}" for name, number in installed.items())
    return (
        f"{both} are both installed and overwrite each other's files: run "
        f"`pip uninstall -y {' '.join(installed)}`, then `pip install {keep}`"
    )


def missing_provider_advice(device: str) -> str:
    """Say how to get the provider of a device that this build of onnxruntime lacks; one clause, the mend."""
    wheel = _WHEEL_OF.get(device)
    if wheel is not None:
        installed = installed_wheels()
        others = " ".join(installed) or "onnxruntime"
        return wheel_clash(installed, wheel) or f"run `pip uninstall -y {others}`, then `pip install {wheel}`"
    if device == "coreml":
        return "install the plain onnxruntime wheel on macOS"
    return "no wheel on PyPI brings it, build onnxruntime with it"
