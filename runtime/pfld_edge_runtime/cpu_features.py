"""What this processor has that decides the speed of INT8 networks: dot products of 8-bit integers, wide vectors."""

import platform
import re
import subprocess
from pathlib import Path

__all__ = ["INT8_DOT_PRODUCTS", "cpu_features"]

INT8_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"})
"""Features that multiply and add 8-bit integers in one instruction; without one, INT8 gains less over fp32."""

# The kernel's names (Linux, arch/x86/include/asm/cpufeatures.h and arch/arm64/kernel/cpuinfo.c) and Apple's sysctl
# names, to the names that processor manuals use.
_NAMES = {
    **{
        name: name
        for name in ("sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
    },
    **{name: name for name in ("neon", "i8mm", "bf16", "sve", "sve2")},
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


def cpu_features() -> tuple[str, ...] | None:
    """List the features of this processor that matter here, sorted, e.g. ``avx2``, ``avx512_vnni``, ``dotprod``.

    Returns:
        Names; an empty tuple where the processor has none of them; None where this system doesn't tell.
    """
    system = platform.system()
    if system == "Linux":
        return _known(_linux())
    if system == "Darwin":
        return _known(_macos())
    return None


def _known(found: set[str]) -> tuple[str, ...] | None:
    """Translate the system's names; no names at all means that it didn't tell."""
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
    """Read what ``sysctl`` says of an Apple or Intel processor."""
    names = ("hw.optional", "machdep.cpu.features", "machdep.cpu.leaf7_features")
    found: set[str] = set()
    for name in names:
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
