"""Each device opens its onnxruntime provider, and a device that doesn't run the model is reported.

Only the CPU is here, so onnxruntime's providers are simulated: the names are those of its documentation.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from pfld_edge_runtime import DEVICES, Contract, DeviceError, DeviceWarning, FaceLandmarker, device_check, session
from pfld_edge_runtime.session import open_session

Build = Callable[..., Path]
REAL = onnxruntime.InferenceSession
CPU = "CPUExecutionProvider"

# https://onnxruntime.ai/docs/execution-providers
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}


@dataclass
class Played:
    """An onnxruntime with other providers: which it has, which load, which take layers, and what it was asked."""

    has: list[str]
    loads: list[str] = field(default_factory=list)
    raises: list[str] = field(default_factory=list)
    layers: dict[str, int] | None = None
    tells: bool = True
    asked: list[tuple[Any, Any]] = field(default_factory=list)

    def open(self, source: Any, sess_options: Any, providers: list[Any], **_: Any) -> Any:
        names = [item if isinstance(item, str) else item[0] for item in providers]
        self.asked.append((providers, sess_options))
        if names[0] in self.raises:
            raise RuntimeError(f"failed to start {names[0]}")
        session = REAL(source, sess_options=sess_options, providers=[CPU])
        loaded = [name for name in names if name == CPU or name in self.loads]
        session.get_providers = lambda: loaded
        layers = {loaded[0]: 12} if self.layers is None else self.layers
        parts = [Part(name, count) for name, count in layers.items() if name in loaded]
        session.get_provider_graph_assignment_info = (lambda: parts) if self.tells else _raise
        return session


def _raise() -> None:
    raise AttributeError("get_provider_graph_assignment_info came with onnxruntime 1.24")


@dataclass
class Part:
    ep_name: str
    count: int

    def get_nodes(self) -> list[None]:
        return [None] * self.count


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Played]:
    def install(*has: str, **answers: Any) -> Played:
        played = Played([*has, CPU], **({"loads": list(has)} | answers))
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: played.has)
        monkeypatch.setattr(onnxruntime, "InferenceSession", played.open)
        monkeypatch.setattr(session, "find_spec", lambda _: None)  # the package openvino isn't there either
        return played

    return install


@pytest.fixture
def model(build: Build, contract: Contract) -> Path:
    return build(contract)


def config(options: onnxruntime.SessionOptions, key: str) -> str:
    return str(options.get_session_config_entry(f"session.{key}"))


@pytest.mark.parametrize("device", PROVIDERS)
def test_a_device_runs_on_its_provider_with_the_cpu_behind(play: Any, model: Path, device: str) -> None:
    played = play(PROVIDERS[device])
    landmarker = FaceLandmarker(model, device, strict=True)
    assert landmarker.device == device
    assert landmarker.providers == [PROVIDERS[device], CPU]
    (((name, options), *rest), _), *others = played.asked
    assert (name, rest, others) == (PROVIDERS[device], [CPU], [])
    assert all(isinstance(value, str) for value in options.values())


def test_where_onnxruntime_does_not_tell_the_provider_that_loaded_counts(play: Any, model: Path) -> None:
    play(PROVIDERS["cuda"], tells=False)
    assert FaceLandmarker(model, "cuda", strict=True).device == "cuda"
    play(PROVIDERS["cuda"], tells=False, loads=[])
    with pytest.raises(DeviceError):
        FaceLandmarker(model, "cuda", strict=True)


def test_every_device_of_the_documentation_has_a_name() -> None:
    assert {"cpu": CPU, **PROVIDERS} == DEVICES


@pytest.mark.parametrize("device", PROVIDERS)
def test_a_missing_provider_warns_and_the_cpu_runs(play: Any, model: Path, device: str) -> None:
    play()
    with pytest.warns(
        DeviceWarning, match=f"'{device}' can't run the model, 'cpu' does.*no {PROVIDERS[device]}"
    ) as said:
        landmarker = FaceLandmarker(model, device)
    assert landmarker.device == "cpu"
    assert said[0].filename == __file__


@pytest.mark.parametrize("device", PROVIDERS)
def test_a_missing_provider_is_an_error_where_strict(play: Any, model: Path, device: str) -> None:
    play()
    with pytest.raises(DeviceError, match=f"'{device}' can't run the model; .*no {PROVIDERS[device]}") as caught:
        FaceLandmarker(model, device, strict=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"loads": []}, "did not start: a library"),
        ({"raises": [PROVIDERS["cuda"]]}, "did not start: failed to start CUDA"),
        ({"layers": {PROVIDERS["cuda"]: 0, CPU: 12}}, "few or none of the layers: try the fp32 file"),
        ({"layers": {PROVIDERS["cuda"]: 2, CPU: 10}}, "few or none of the layers: try the fp32 file"),
    ],
    ids=["library missing", "driver raises", "took no layer", "took few layers"],
)
def test_a_provider_that_is_there_but_does_not_run_is_told(
    play: Any, model: Path, answers: dict[str, Any], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    play(PROVIDERS["cuda"], **answers)
    with pytest.warns(DeviceWarning, match=f"'cuda' can't run the model, 'cpu' does.*{reason}"):
        assert FaceLandmarker(model, "cuda").device == "cpu"
    with pytest.raises(DeviceError, match=reason):
        FaceLandmarker(model, "cuda", strict=True)
    assert capfd.readouterr() == ("", "")


def test_tensorrt_falls_back_to_cuda(play: Any, model: Path) -> None:
    play(PROVIDERS["tensorrt"], PROVIDERS["cuda"], loads=[PROVIDERS["cuda"]])
    with pytest.warns(DeviceWarning, match="'tensorrt' can't run the model, 'cuda' does"):
        assert FaceLandmarker(model, "tensorrt").device == "cuda"


@pytest.mark.parametrize(
    ("has", "answers", "runs"),
    [
        ([], {}, "cpu"),
        (["cuda"], {}, "cuda"),
        (["tensorrt"], {}, "cpu"),
        (["tensorrt", "cuda"], {}, "cuda"),
        (["cuda", "openvino"], {"loads": ["openvino"]}, "openvino"),
        (["cuda", "xnnpack"], {"raises": ["cuda"]}, "xnnpack"),
        (["coreml"], {"layers": {"coreml": 0, CPU: 12}}, "cpu"),
        (["coreml"], {"layers": {"coreml": 11, CPU: 1}}, "coreml"),
    ],
    ids=repr,
)
def test_auto_takes_the_first_that_really_runs_quietly(
    play: Any, model: Path, has: list[str], answers: dict[str, Any], runs: str
) -> None:
    named = {
        key: {PROVIDERS.get(name, name): count for name, count in value.items()}
        if isinstance(value, dict)
        else [PROVIDERS[name] for name in value]
        for key, value in answers.items()
    }
    play(*(PROVIDERS[name] for name in has), **named)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FaceLandmarker(model, "auto", strict=True).device == runs


@pytest.mark.parametrize(("device", "option"), [("openvino", "num_of_threads"), ("xnnpack", "intra_op_num_threads")])
def test_providers_with_a_pool_of_their_own_get_the_threads(play: Any, model: Path, device: str, option: str) -> None:
    played = play(PROVIDERS[device])
    FaceLandmarker(model, device, threads=3)
    ((provider, _), options) = played.asked[0]
    assert provider == (PROVIDERS[device], {option: "3"})
    # https://onnxruntime.ai/docs/execution-providers/Xnnpack-ExecutionProvider.html: the session's own pool at one.
    assert options.intra_op_num_threads == (1 if device == "xnnpack" else 3)


def test_one_thread_that_does_not_spin_is_the_default_and_both_can_be_set(play: Any, model: Path) -> None:
    played = play()
    open_session(model)
    open_session(model, "cpu", 2, spinning=True)
    first, second = (options for _, options in played.asked)
    assert (first.intra_op_num_threads, config(first, "intra_op.allow_spinning")) == (1, "0")
    assert (second.intra_op_num_threads, config(second, "intra_op.allow_spinning")) == (2, "1")


@pytest.mark.parametrize("device", ["tpu", "CUDA", "", "AUTO"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_device_that_nobody_knows_is_an_error_always(model: Path, device: str, strict: bool) -> None:
    with pytest.raises(DeviceError, match=r"unknown device .*; known: cpu, cuda, .*, auto"):
        FaceLandmarker(model, device, strict=strict)


def test_a_damaged_file_is_not_blamed_on_the_device(play: Any, tmp_path: Path) -> None:
    played = play(PROVIDERS["cuda"])
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"PNG" * 99)
    with pytest.raises(ValueError, match=r"damaged\.onnx is not an ONNX model"):
        FaceLandmarker(path, "cuda")
    assert len(played.asked) == 2


def test_two_wheels_at_once_are_named_with_the_mend(play: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play()
    there = {"onnxruntime": "1.20.1", "onnxruntime-gpu": "1.20.1"}

    def version(name: str) -> str:
        if name not in there:
            raise device_check.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(device_check, "version", version)
    mend = "pip uninstall -y onnxruntime onnxruntime-gpu`, then `pip install onnxruntime-gpu`"
    with pytest.raises(DeviceError) as caught:
        FaceLandmarker(model, "cuda", strict=True)
    assert "onnxruntime 1.20.1 and onnxruntime-gpu 1.20.1 are both installed" in str(caught.value)
    assert mend in str(caught.value)
    assert mend in str(device_check.wheel_clash(device_check.installed_wheels()))


def test_one_wheel_is_no_clash() -> None:
    assert device_check.wheel_clash({}) is None
    assert device_check.wheel_clash({"onnxruntime-gpu": "1.20.1"}) is None
    assert "onnxruntime" in "".join(device_check.installed_wheels())
