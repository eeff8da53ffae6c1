"""Processor features from samples of Linux's and macOS's output; the self-test of sound and damaged models."""

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from pfld_edge_runtime import (
    BUNDLED_MODEL,
    FAST_MODEL,
    Contract,
    Fingerprint,
    ModelContractError,
    fingerprint_image,
    self_test,
)
from pfld_edge_runtime.__main__ import main
from pfld_edge_runtime.device_check import INT8_DOT_PRODUCTS, cpu_features

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


Build = Callable[..., Path]


CHANGE = 0.5


def fingerprinted(build: Build, contract: Contract) -> Path:
    """Write the small network with a fingerprint that onnxruntime itself gave, without this runtime's code."""
    path = build(contract)
    pixels = fingerprint_image(5, contract.input_size)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    output = session.run(None, {"x": ((pixels - 127.5) / 127.5).transpose(0, 3, 1, 2)})[0][0]
    return build(contract.replace(fingerprint=Fingerprint(5, tuple(map(float, output)), 1e-4)))


def sabotaged(path: Path, value: float = CHANGE) -> Path:
    """Add to one weight, the bias of the first number."""
    model = onnx.load(path)
    (bias,) = (item for item in model.graph.initializer if item.name == "b")
    changed = numpy_helper.to_array(bias).copy()
    changed[0] += value
    bias.CopyFrom(numpy_helper.from_array(changed, "b"))
    spoilt = path.with_name("sabotaged.onnx")
    onnx.save(model, spoilt)
    return spoilt


def test_the_bundled_model_passes() -> None:
    found = self_test()
    assert found.passed
    assert found.device == "cpu"
    assert found.difference <= found.tolerance


def test_a_healthy_file_passes_as_path_and_as_bytes(build: Build, contract: Contract) -> None:
    path = fingerprinted(build, contract)
    for model in (path, str(path), path.read_bytes()):
        found = self_test(model)
        assert found.passed, found.verdict


def test_one_changed_weight_is_found_and_measured(build: Build, contract: Contract) -> None:
    path = sabotaged(fingerprinted(build, contract))
    found = self_test(path)
    assert not found.passed
    assert found.difference == pytest.approx(CHANGE, abs=1e-3)
    assert "differs from its exporter by 0.5" in found.verdict
    assert "copy the file anew" in found.verdict
    assert "\n" not in found.verdict


def test_a_network_that_gives_nan_does_not_pass(build: Build, contract: Contract) -> None:
    found = self_test(sabotaged(fingerprinted(build, contract), np.nan))
    assert np.isnan(found.difference)
    assert not found.passed


def test_another_models_fingerprint_does_not_pass(build: Build, contract: Contract) -> None:
    """The contract of one network on another of the same shapes: no shape gives it away."""
    path = fingerprinted(build, contract)
    model = onnx.load(path)
    (weights,) = (item for item in model.graph.initializer if item.name == "w")
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), "w"))
    assert not self_test(model.SerializeToString()).passed


@pytest.mark.parametrize("output", [None, (0.5,) * 195])
def test_a_file_without_a_usable_fingerprint_is_refused(
    build: Build, contract: Contract, output: tuple[float, ...] | None
) -> None:
    fingerprint = None if output is None else Fingerprint(5, output, 0.01)
    with pytest.raises(ModelContractError, match=r"tiny\.onnx carries .*fingerprint.*convert it again"):
        self_test(build(contract.replace(fingerprint=fingerprint)))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    return status, captured.out


def test_the_command_says_versions_providers_and_processor(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys)
    assert status == 0
    for part in (onnxruntime.__version__, np.__version__, "CPUExecutionProvider", "processor: "):
        assert part in text
    assert all(f"ok: {model} on cpu" in text for model in (BUNDLED_MODEL, FAST_MODEL))


def test_the_command_tells_the_worst_of_several_models(
    build: Build, contract: Contract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = fingerprinted(build, contract)
    bad, missing = sabotaged(good), tmp_path / "none.onnx"
    assert run(capsys, good)[0] == 0
    status, text = run(capsys, good, bad)
    assert (status, "FAILED: " in text, "copy the file anew" in text) == (1, True, True)
    status, text = run(capsys, bad, missing, good)
    assert (status, "ERROR: " in text, "no such model file" in text) == (2, True, True)


def test_the_command_prints_json(build: Build, contract: Contract, capsys: pytest.CaptureFixture[str]) -> None:
    bad = sabotaged(fingerprinted(build, contract), np.nan)
    status, text = run(capsys, bad, "--json")
    report: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    assert status == 1
    assert report["onnxruntime"] == onnxruntime.__version__
    (test,) = report["models"]
    assert (test["status"], test["difference"], test["device"]) == (1, None, "cpu")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_the_command_says_which_device_runs_instead(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, "--device", "cuda")
    assert (status, "WARNING: device 'cuda' can't run the model, 'cpu' does" in text) == (0, True)
    status, text = run(capsys, "--device", "cuda", "--strict")
    assert (status, "ERROR: device 'cuda' can't run the model" in text) == (2, True)
    status, text = run(capsys, "--device", "tpu")
    assert (status, "unknown device 'tpu'" in text) == (2, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_report_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "pfld_edge_runtime"], stdout=full, stderr=PIPE, check=False)
    assert (done.returncode, done.stderr) == (2, b"standard output: No space left on device\n")
