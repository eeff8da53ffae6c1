"""Checks of a device: the self-test of a model, the installed onnxruntime wheels, the processor's INT8 instructions."""

import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pfld_edge_runtime import __version__
from pfld_edge_runtime.contract import fingerprint_image
from pfld_edge_runtime.errors import ModelContractError
from pfld_edge_runtime.landmark_model import BUNDLED_MODEL, LandmarkModel

INT8_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"})
"""Features that multiply and add 8-bit integers in one instruction; without one, INT8 gains less over fp32."""

# The kernel's names (Linux, arch/x86/include/asm/cpufeatures.h and arch/arm64/kernel/cpuinfo.c) and Apple's sysctl
# names, to the names that processor manuals use.
_MANUAL_NAMES = "sse4_1 avx avx2 fma f16c avx512f avx512_vnni avx_vnni amx_int8 neon i8mm bf16 sve sve2"
_NAMES = {
    **{name: name for name in _MANUAL_NAMES.split()},
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "advsimd": "neon",
    "feat_dotprod": "dotprod",
    "feat_i8mm": "i8mm",
    "feat_fp16": "fp16",
    "feat_bf16": "bf16",
    "sse4.1": "sse4_1",
    "avx1.0": "avx",
}

_WHEEL_KINDS = ("gpu", "openvino", "directml", "qnn", "silicon", "rocm", "training")
_WHEELS = ("onnxruntime", *(f"onnxruntime-{kind}" for kind in _WHEEL_KINDS))

_WHEEL_OF = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu"}


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result of the self-test of one model, a file's path or ``bytes``, on the device that really ran it.

    `difference` is the largest from the exporter's output, in fractions of the crop's side, NaN where the network gave
    NaN; a healthy device shows no more than `tolerance`.
    """

    model: str
    device: str
    providers: tuple[str, ...]
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the device computes what the exporter computed."""
        return self.difference <= self.tolerance

    @property
    def verdict(self) -> str:
        """The outcome in one sentence; where it failed, by how much and what to do."""
        found = f"{self.model} on {self.device} differs from its exporter by {self.difference:.2g} of the crop's side"
        if self.passed:
            return f"{found}, within its tolerance of {self.tolerance:g}"
        advice = (
            "copy the file anew, or upgrade onnxruntime"
            if self.device == "cpu"
            else f"compare with device='cpu': if that passes, {self.device} miscalculates, else copy the file anew"
        )
        return f"{found}, tolerance {self.tolerance:g}: its landmarks are wrong here; {advice}"


def self_test(model: str | Path | bytes | None = None, device: str = "cpu", *, strict: bool = False) -> SelfTest:
    """Run a model on its fingerprint's image and compare the output with the exporter's; the difference is no error.

    Arguments are those of `FaceLandmarker`.

    Raises:
        ModelFileError: The file is missing or not an ONNX model.
        ModelContractError: It carries no contract or no fingerprint, or a damaged one.
        DeviceError: As for `FaceLandmarker`.
    """
    name = BUNDLED_MODEL.name if model is None else "bytes" if isinstance(model, bytes) else str(model)
    network = LandmarkModel.open(model, device, strict=strict)
    contract = network.contract
    seen = contract.fingerprint
    if seen is None:
        raise ModelContractError(f"{name} carries no fingerprint to test by: convert it again with pfld-edge")
    if len(seen.output) != 2 * contract.landmarks.num_landmarks:
        raise ModelContractError(
            f"{name} carries a fingerprint of {len(seen.output)} numbers, not two for each of its points: "
            "convert it again with pfld-edge"
        )
    found = network.predict(fingerprint_image(seen.seed, contract.input_size)[None])
    difference = float(np.abs(found.reshape(-1) - np.array(seen.output)).max())
    return SelfTest(name, network.device, tuple(network.providers), difference, seen.tolerance)


def environment() -> dict[str, Any]:
    """Describe this device in plain JSON types: versions, wheels, providers, processor, a clash of wheels or None."""
    wheels = installed_wheels()
    return {
        "pfld-edge-runtime": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "wheels": wheels,
        "providers": onnxruntime.get_available_providers(),
        "cpu_features": cpu_features(),
        "clash": wheel_clash(wheels),
    }


def installed_wheels() -> dict[str, str]:
    """List the installed distributions that bring the module ``onnxruntime``, with their versions."""
    found: dict[str, str] = {}
    for name in _WHEELS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def wheel_clash(installed: dict[str, str], wanted: str = "") -> str | None:
    """Report two wheels that share the folder ``onnxruntime``, where the last one installed overwrites the other.

    Gives one sentence with the commands that repair it, None where there is at most one of `installed_wheels`. `wanted`
    is the wheel that should stay; otherwise the first one that is not plain ``onnxruntime``.
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
    """Say how to get the provider of a device that this build of onnxruntime lacks; one clause."""
    wheel = _WHEEL_OF.get(device)
    if wheel is not None:
        installed = installed_wheels()
        others = " ".join(installed) or "onnxruntime"
        return wheel_clash(installed, wheel) or f"run `pip uninstall -y {others}`, then `pip install {wheel}`"
    if device == "openvino":
        return "run `pip install openvino`"
    if device == "coreml":
        return "install the plain onnxruntime wheel on macOS"
    return "no wheel on PyPI brings it, build onnxruntime with it"


def cpu_features() -> tuple[str, ...] | None:
    """List the features of this processor that matter here, sorted, e.g. ``avx2``, ``avx512_vnni``, ``dotprod``.

    An empty tuple where the processor has none of them; None where this system doesn't say.
    """
    read = {"Linux": _linux, "Darwin": _macos}.get(platform.system(), set[str])
    found = read()
    return tuple(sorted({_NAMES[name] for name in found if name in _NAMES})) if found else None


def _linux() -> set[str]:
    """Read the flags that every core has: a phone's big and little cores differ, and threads move."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return set()
    cores = [set(line.lower().split()) for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)]
    return set.intersection(*cores) if cores else set()


def _macos() -> set[str]:
    found: set[str] = set()
    for name in ("hw.optional", "machdep.cpu.features", "machdep.cpu.leaf7_features"):
        try:
            done = subprocess.run(["/usr/sbin/sysctl", name], capture_output=True, text=True, check=False, timeout=5)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            continue
        for line in done.stdout.splitlines():
            key, _, value = line.partition(":")
            if key.startswith("hw.optional"):
                found |= {key.rpartition(".")[2].lower()} if value.strip() == "1" else set()
            else:
                found |= set(value.lower().split())
    return found
