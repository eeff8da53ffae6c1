"""What machine a benchmark ran on."""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from pfld_edge_convert.benchmark.peak import Peak
from pfld_edge_convert.benchmark.record import Environment
from pfld_edge_runtime.cpu_features import cpu_features

__all__ = ["environment", "load_average"]


def environment(peaks: Sequence[Peak], load: float | None) -> Environment:
    """Describe this machine.

    Args:
        peaks: Measured on it.
        load: Taken before the benchmark added its own.
    """
    return Environment(
        processor=_processor(),
        cpu_features=cpu_features(),
        cores=_cores(),
        load=load,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
        peaks=tuple(peaks),
    )


def load_average() -> float | None:
    """Processes that wanted a core in the last minute; None where the system doesn't tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
