"""`bench`, as a user calls it; what the machine's noise decides is made up, and no time is asserted."""

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from pfld_edge.cli import run
from pfld_edge_convert.benchmark.bench import BenchReport
from pfld_edge_convert.benchmark.timing import Times
from pfld_edge_runtime import FAST_MODEL


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Made-up times: the second file takes half as long, with this noise, this share of it as processor time."""
    amount = [0.01, 1.0]

    def made_up(calls: Mapping[Hashable, object], rounds: int, **_: object) -> dict[Hashable, Times]:
        random = np.random.default_rng(0)
        walls = [(2.0 / (1 + place % 2)) * np.exp(random.normal(0, amount[0], rounds)) for place in range(len(calls))]
        return {
            case: Times(walls[place], walls[place] * (amount[1] if place % 2 else 1))
            for place, case in enumerate(calls)
        }

    monkeypatch.setattr("pfld_edge_convert.benchmark.timing.take_turns", made_up)
    return amount


def test_bench_prints_tables(known_model: Path, noise: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(known_model), "--against", str(FAST_MODEL), "--rounds", "120", "--starts", "1"]
    assert noise
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "known.onnx" in line)
    assert "faster" in row
    assert "0.5" in row
    assert "Too noisy" not in printed
    for said in ("A fresh process", "Share of the processor's peak", "Where the time goes", "QLinearConv (9)"):
        assert said in printed


def test_a_noisy_machine_is_status_1_and_no_ratio(
    known_model: Path, noise: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    noise[0] = 1.0
    assert run(["bench", str(FAST_MODEL), str(known_model), "--rounds", "40", "--starts", "0"]) == 1
    printed = capsys.readouterr().out
    assert "Too noisy to tell: known.onnx, 1 thread, 1 face: the ratio's interval" in printed
    assert "raise --rounds" in printed
    assert "A fresh process" not in printed


def test_a_processor_time_that_disagrees_is_status_1_and_both_ratios(
    known_model: Path, noise: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    noise[1] = 0.5
    assert run(["bench", str(FAST_MODEL), str(known_model), "--rounds", "120", "--starts", "0"]) == 1
    printed = capsys.readouterr().out
    assert "the ratio is 0.50 by wall time, 0.25 by processor time" in printed
    ends = re.search(r"known\.onnx.* ([\d.]+) to ([\d.]+) +│ too noisy to tell", printed)
    assert ends is not None
    assert [float(end) for end in ends.groups()] == pytest.approx([0.25, 0.5], rel=0.02)


def test_bench_prints_json_alone_and_draws(
    known_model: Path, noise: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert noise
    options = ["--threads", "1,2", "--batch", "1,3", "--rounds", "30", "--starts", "0", "--json", "--from-crops"]
    plot = tmp_path / "plots/bench.png"
    assert run(["bench", str(FAST_MODEL), str(known_model), *options, "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    report = BenchReport.from_json(printed)
    assert json.loads(printed)["too_noisy"] is False
    assert [(timing.threads, timing.batch) for timing in report.models[1].timings] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert report.settings.from_crops
    picture = cv2.imread(str(plot))
    assert picture is not None
    assert picture.shape[1] > 1000
    assert len(np.unique(picture[:, :, 0])) > 10


def test_bench_times_a_file_in_each_runtime(
    known_model: Path, noise: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    assert noise
    runtimes = ["--runtime", "onnxruntime", "--runtime", "openvino"]
    assert run(["bench", str(known_model), *runtimes, "--rounds", "120", "--starts", "1", "--json"]) == 0
    models = BenchReport.from_json(capsys.readouterr().out).models
    assert [model.name for model in models] == ["known.onnx", "known.onnx (openvino)"]
    assert [model.runtime for model in models] == ["onnxruntime", "OpenVINO"]
    assert [model.profile is None for model in models] == [False, True]


def test_a_model_alone_has_no_ratio(known_model: Path, noise: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert noise
    assert run(["bench", str(known_model), "--rounds", "20", "--starts", "0"]) == 0
    printed = capsys.readouterr().out
    assert "steady" in printed
    assert "reference" not in printed


def test_bench_measures(known_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(known_model), "--rounds", "3", "--starts", "1", "--json"]) in (0, 1)
    timing = json.loads(capsys.readouterr().out)["models"][0]["timings"][0]
    assert timing["median_ms"]["value"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "MODEL..."),
        (["none.onnx"], "none.onnx: no such model file"),
        (["."], "no such model file"),
        ([__file__], "not an ONNX model"),
        (["{known}", "--against", "none.onnx"], "none.onnx: no such model file"),
        (["{known}", "--threads", "0"], "at least 1"),
        (["{known}", "--threads", "two"], "not a list of whole numbers"),
        (["{known}", "--batch", "1,,2"], "not a list of whole numbers"),
        (["{known}", "--batch", "-1"], "at least 1"),
        (["{known}", "--rounds", "0"], "--rounds"),
        (["{known}", "--starts", "-1"], "--starts"),
        (["{known}", "--precision", "much"], "not a percentage"),
        (["{known}", "--axis", "height"], "write height=480"),
        (["{known}", "--plot", "a.svg"], "must end in .png or .jpg"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], says: str, known_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *(argument.format(known=known_model) for argument in arguments)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("Error: ")
    assert says in errors[0]


def test_a_checkpoint_is_to_be_converted_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")
    assert run(["bench", str(tmp_path / "a.pth")]) == 2
    assert "pfld-edge convert" in capsys.readouterr().err
