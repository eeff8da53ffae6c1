"""What `bench` counts and feeds, against hand counts and torch; runs are short and no time is asserted."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from pfld_edge_convert.benchmark.bench import BenchReport, BenchRequest, open_subject, open_subjects, run_bench, steps
from pfld_edge_convert.benchmark.processor import Peak, Work, roofline, work_of
from pfld_edge_convert.benchmark.profiling import read_profile, take_profile
from pfld_edge_convert.errors import BenchmarkError
from pfld_edge_convert.export import export_onnx
from pfld_edge_convert.model_stats import model_stats
from pfld_edge_convert.reparameterize import reparameterize
from pfld_edge_runtime import FAST_MODEL, ModelFileError
from pfld_edge_train.models import ModelConfig, build_model

Build = Callable[..., onnx.ModelProto]
DOCS = Path(__file__).parents[2] / "docs/benchmarking.md"


def small(build: Build, batch: int | str = "batch", side: int | str = 16) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    constants = {
        "w": random.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "b": random.normal(size=8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="first", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["y"], name="last"),
    ]
    return build(nodes, constants, [batch, 3, side, side])


@pytest.fixture
def file(build: Build, tmp_path: Path) -> Path:
    onnx.save(small(build), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def torch_counts(model: nn.Module, size: int) -> tuple[int, int]:
    """Multiply-accumulates by hooks on every convolution and linear layer, and parameters."""
    macs = [0]

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = module.get_parameter("weight")
        macs[0] += output[0].numel() * weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    return macs[0], sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("kind", ["pfld-ghostone"])
def test_macs_and_parameters_are_what_torch_hooks_count(kind: str) -> None:
    trained = build_model(ModelConfig(kind, width_factor=0.5, input_size=64, conv_branches=1))
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):  # a bias of zeros would not be exported
            module.get_buffer("running_mean").normal_()
    model = reparameterize(trained)
    exported = export_onnx(model, 64)
    macs, parameters = torch_counts(model, 64)
    stats = model_stats(exported)
    assert (stats.macs, stats.parameters) == (macs, parameters)
    work = work_of(exported, {"image": np.zeros((1, 3, 64, 64), np.float32)})
    assert (work.float_macs, work.int8_macs, work.parameters) == (macs, 0, parameters)
    assert work.weight_bytes == pytest.approx(4 * parameters, rel=0.01)  # and what says how to reshape


def test_an_int8_file_works_in_8_bits() -> None:
    model = onnx.load(str(FAST_MODEL))
    work = work_of(model, open_subject(FAST_MODEL).feed(1))
    # What torch counts of the same network: the means over heat maps of 14 x 14 places and the refinement are in float.
    refinement = 196 * 196 + 2 * 294 * 32
    # The first convolution computes two outputs from 12 channels and 3 x 2 places in place of one from 3 and 3 x 3.
    more = 56 * 28 * (2 * 16) * (12 * 6) - 56 * 56 * 16 * 27
    assert (work.float_macs, work.int8_macs) == (98 * 14 * 14 * 3 + refinement, 35_499_520 + more)
    assert work.weight_bytes == pytest.approx(work.parameters + 3 * refinement, rel=0.05)


def test_a_call_moves_the_bytes_of_its_activations(file: Path) -> None:
    profile = take_profile(open_subject(file), 1, 2)
    inputs, maps = 2 * 3 * 16 * 16 * 4, 2 * 8 * 8 * 8 * 4
    assert {item.op_type: item.nodes for item in profile.operators}["Conv"] == 1
    # The convolution reads the input and writes a map, the sigmoid reads and writes one; a reorder of the layout, where
    # this processor wants one, reads and writes one more.
    assert profile.activation_bytes in (inputs + 3 * maps, inputs + 5 * maps)


def test_a_profile_is_summed_up_by_operator() -> None:
    def node(name: str, op_type: str, index: str, micros: int) -> dict[str, Any]:
        sizes = {"activation_size": "10", "output_size": "4", "parameter_size": "9"}
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "dur": micros,
            "args": {"op_name": op_type, "node_index": index, **sizes},
        }

    events: list[dict[str, Any]] = [{"cat": "Session", "name": "model_loading_uri", "dur": 9000}]
    for run in range(8):  # the first five are warm-up
        slow = 100 if run < 5 else 1
        events += [
            node("a", "Conv", "0", 300 * slow),
            node("b", "Conv", "1", 200 * slow),
            node("c", "Add", "2", 100 * slow),
        ]
        events.append({"cat": "Session", "name": "model_run", "dur": 1000 * slow})
    found = read_profile(events)
    assert [(item.op_type, item.nodes, item.share) for item in found.operators] == [
        ("Conv", 2, pytest.approx(0.5)),
        ("Add", 1, pytest.approx(0.1)),
    ]
    assert [(item.name, item.milliseconds) for item in found.nodes] == [("a", 0.3), ("b", 0.2), ("c", 0.1)]
    assert found.between == pytest.approx(0.4)
    assert (found.milliseconds, found.activation_bytes) == (1.0, 3 * 14)


def test_a_roofline_is_the_textbook_formula() -> None:
    peak = Peak(threads=1, float_gmacs=50, int8_gmacs=200, bandwidth_gbs=25)
    work = Work(float_macs=10_000_000, int8_macs=40_000_000, parameters=7, weight_bytes=1_000_000)
    found = roofline(work, 2, 3_000_000, 2.0, peak)
    # 20 M at 50 G/s and 80 M at 200 G/s: 0.4 ms each.
    assert found.ideal_ms == pytest.approx(0.8)
    assert found.share_of_peak == pytest.approx(0.4)
    assert (found.macs, found.bytes_moved, found.intensity) == (100_000_000, 4_000_000, 25)
    assert found.ridge == pytest.approx(125 / 25)
    assert roofline(work, 2, 3_000_000, 2.0, peak, calls=2).bytes_moved == 8_000_000


def test_free_axes_are_filled(build: Build, tmp_path: Path) -> None:
    onnx.save(small(build, side="side"), tmp_path / "free.onnx")
    subject = open_subject(tmp_path / "free.onnx")
    assert subject.filled == {"side": 320}
    assert subject.feed(4)["x"].shape == (4, 3, 320, 320)
    assert open_subject(tmp_path / "free.onnx", {"side": 48}).feed(1)["x"].shape == (1, 3, 48, 48)


def test_a_file_with_a_fixed_batch_takes_several_calls(build: Build, tmp_path: Path) -> None:
    for size in (1, 4):
        onnx.save(small(build, batch=size), tmp_path / f"{size}.onnx")
    one, four = open_subjects([tmp_path / "1.onnx", tmp_path / "4.onnx"])
    assert (one.calls(8), four.calls(8)) == (8, 2)
    assert (one.feed(8)["x"].shape[0], four.feed(8)["x"].shape[0]) == (1, 4)
    with pytest.raises(BenchmarkError, match="takes exactly 4 a call"):
        four.calls(6)


def test_an_end_to_end_graph_is_fed_a_photograph_and_boxes(tmp_path: Path) -> None:
    from pfld_edge_convert.end_to_end import end_to_end_contract, end_to_end_model
    from pfld_edge_convert.model_file import read_contract, write_model

    model = onnx.load(str(FAST_MODEL))
    contract = read_contract(model)
    assert contract is not None
    write_model(end_to_end_model(model, contract), end_to_end_contract(contract), tmp_path / "a.e2e.onnx")
    subject = open_subject(tmp_path / "a.e2e.onnx")
    assert {name: values.shape for name, values in subject.feed(3).items()} == {
        "image": (1080, 1920, 3),
        "boxes": (3, 4),
    }
    assert (subject.calls(3), subject.filled) == (1, {})
    plain = work_of(model, open_subject(FAST_MODEL).feed(1))
    assert work_of(onnx.load(str(subject.path)), subject.feed(2)).int8_macs == plain.int8_macs
    subject.network_call(1, 3)()
    with pytest.raises(BenchmarkError, match="takes no crops"):
        subject.crops_call(1, 1)


def test_files_of_one_name_are_told_apart(build: Build, tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        onnx.save(small(build), tmp_path / folder / "a.onnx")
    old, new = tmp_path / "old/a.onnx", tmp_path / "new/a.onnx"
    assert [subject.name for subject in open_subjects([old, new])] == [str(old), str(new)]
    assert [subject.name for subject in open_subjects([old, old])] == ["a.onnx", "a.onnx (2)"]


def test_what_cannot_be_timed_gets_a_sentence(build: Build, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")
    (tmp_path / "a.onnx").write_bytes(b"x")
    two = small(build)
    two.graph.node.append(helper.make_node("Add", ["y", "z"], ["sum"]))
    two.graph.input.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1]))
    onnx.save(two, tmp_path / "two.onnx")
    for name, error, says in [
        ("none.onnx", ModelFileError, "no such model file"),
        (".", ModelFileError, "no such model file"),
        ("a.pth", BenchmarkError, "pfld-edge convert"),
        ("a.onnx", ModelFileError, "not an ONNX model"),
        ("two.onnx", BenchmarkError, "2 inputs"),
    ]:
        with pytest.raises(error, match=says):
            open_subject(tmp_path / name)


@pytest.fixture(scope="module")
def report(build: Build, tmp_path_factory: pytest.TempPathFactory) -> BenchReport:
    folder = tmp_path_factory.mktemp("bench")
    onnx.save(small(build), folder / "a.onnx")
    onnx.save(small(build, batch=1), folder / "b.onnx")
    subjects = open_subjects([folder / "a.onnx", folder / "b.onnx"])
    request = BenchRequest(threads=(1, 2), batches=(1, 2), rounds=12, starts=1)
    told: list[int] = []
    found = run_bench(subjects, request, told.append)
    assert sum(told) == steps(subjects, request)
    return found


def test_a_report_says_all_of_it(report: BenchReport) -> None:
    first, second = report.models
    assert (report.settings.reference, first.name, second.name) == ("a.onnx", "a.onnx", "b.onnx")
    assert [(timing.threads, timing.batch, timing.calls) for timing in second.timings] == [
        (1, 1, 1),
        (1, 2, 2),
        (2, 1, 1),
        (2, 2, 2),
    ]
    assert all(timing.ratio is None for timing in first.timings)
    assert all(timing.ratio is not None and timing.ratio.low > 0 for timing in second.timings)
    assert all(timing.p95_ms is None and timing.p99_ms is None for timing in first.timings)
    for mine, reference in zip(second.timings, first.timings, strict=True):
        assert reference.processor_ratio is None
        if mine.processor_ms is not None and reference.processor_ms is not None:  # Windows measures none
            assert mine.processor_ratio == mine.processor_ms / reference.processor_ms
    assert first.start is not None
    assert first.start.cold_ms > first.start.import_ms + first.start.load_ms + first.start.first_ms
    assert [peak.threads for peak in report.environment.peaks] == [1, 2]
    assert first.work.macs == 8 * 8 * 8 * 27


def test_a_report_goes_to_json_and_back(report: BenchReport) -> None:
    text = report.to_json()
    assert BenchReport.from_json(text) == report
    record = json.loads(text)
    assert record["format"] == "pfld-edge-bench-1"
    assert record["too_noisy"] == report.too_noisy
    for timing in (timing for model in record["models"] for timing in model["timings"]):
        del timing["processor_ms"], timing["processor_ratio"]  # added later
    assert BenchReport.from_json(json.dumps(record)).models[0].timings[0].processor_ms is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "pfld-edge-bench-2"}', '{"format": "pfld-edge-bench-1"}'])
def test_another_json_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match="benchmark record"):
        BenchReport.from_json(text)


def fields(kind: type) -> set[str]:
    """Names of a dataclass's fields and of those inside them."""
    names = set()
    for name, hint in get_type_hints(kind).items():
        names.add(name)
        for inner in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(inner):
                names |= fields(inner)  # type: ignore[arg-type]
    return names


def test_the_document_explains_every_field() -> None:
    explained = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))
    assert fields(BenchReport) - explained == set()
