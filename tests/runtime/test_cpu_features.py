"""Processor features are read from what Linux and macOS print; the samples follow their documentation."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pfld_edge_runtime.cpu_features import INT8_DOT_PRODUCTS, cpu_features

# A Cortex-A76 (Raspberry Pi 5) has the dot product instructions and a Cortex-A72 (Pi 4) has not; the kernel's spelling.
PI_5 = (
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
)
PI_4 = "Features\t: fp asimd evtstrm crc32 cpuid\n"
LAPTOP = "vendor_id\t: GenuineIntel\nflags\t\t: fpu sse4_1 avx f16c avx2 fma avx_vnni\nbugs\t: spectre\n"


def read(monkeypatch: pytest.MonkeyPatch, system: str, text: str) -> tuple[str, ...] | None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    return cpu_features()


@pytest.mark.parametrize(
    ("text", "features", "fast"),
    [
        (PI_5 * 4, ("dotprod", "fp16", "neon"), True),
        (PI_4 * 4, ("neon",), False),
        (LAPTOP * 2, ("avx", "avx2", "avx_vnni", "f16c", "fma", "sse4_1"), True),
        ("flags : fpu\n", (), False),
    ],
    ids=["Raspberry Pi 5", "Raspberry Pi 4", "laptop", "nothing of note"],
)
def test_linux(monkeypatch: pytest.MonkeyPatch, text: str, features: tuple[str, ...], fast: bool) -> None:
    assert read(monkeypatch, "Linux", text) == features
    assert bool(INT8_DOT_PRODUCTS & set(features)) == fast


def test_only_what_every_core_has_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, "Linux", PI_5 + PI_4) == ("neon",)


@pytest.mark.parametrize(("system", "text"), [("Linux", ""), ("Linux", "processor : 0\n"), ("Windows", PI_5)])
def test_a_system_that_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch, system: str, text: str) -> None:
    assert read(monkeypatch, system, text) is None


@pytest.mark.parametrize(
    ("output", "features"),
    [
        (
            "hw.optional.neon: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 1\nhw.optional.avx: 0\n",
            ("dotprod", "i8mm", "neon"),
        ),
        ("machdep.cpu.features: FPU SSE4.1 AVX1.0 FMA F16C\n", ("avx", "f16c", "fma", "sse4_1")),
        ("", None),
    ],
    ids=["Apple", "Intel", "silent"],
)
def test_macos(monkeypatch: pytest.MonkeyPatch, output: str, features: tuple[str, ...] | None) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, output, "")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", run)
    assert cpu_features() == features


def test_a_mac_without_sysctl_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", run)
    assert cpu_features() is None
