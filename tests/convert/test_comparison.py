"""What differs between two files, and what onnxruntime makes of one: each difference is put in on purpose."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from pfld_edge_convert.inspection import Comparison, FusedPattern, compare, fusion_of, inspect_file
from pfld_edge_convert.model_file import attach_contract
from pfld_edge_convert.model_stats import layer_weights
from pfld_edge_runtime import Contract
from pfld_edge_runtime.arrays import Float32Array

Build = Callable[..., onnx.ModelProto]
Weights = dict[str, Float32Array]


def constants() -> Weights:
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (4, 8, 1, 1), "wf": (4, 10)}
    shapes |= dict.fromkeys(("scale", "shift", "mean"), (8,))
    made = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"var": random.uniform(1, 2, 8).astype(np.float32)}


def network(build: Build, weights: Weights | None = None, *, norm: bool = True) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
        *([node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"], name="norm")] if norm else []),
        node("Relu", ["n1" if norm else "c1"], ["r1"], name="relu1"),
        node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1] * 4),
        node("Relu", ["c2"], ["r2"], name="relu2"),
        node("Conv", ["r2", "w3"], ["c3"], name="third"),
        node("GlobalAveragePool", ["c3"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flatten"),
        node("Gemm", ["f", "wf"], ["y"], name="last"),
    ]
    return build(nodes, weights or constants(), ["n", 3, 16, 16])


@pytest.fixture
def compared(build: Build, tmp_path: Path) -> Callable[[onnx.ModelProto], Comparison]:
    def compared(other: onnx.ModelProto) -> Comparison:
        onnx.save(network(build), tmp_path / "a.onnx")
        onnx.save(other, tmp_path / "b.onnx")
        return compare(inspect_file(tmp_path / "a.onnx"), inspect_file(tmp_path / "b.onnx"))

    return compared


def test_a_file_does_not_differ_from_itself(build: Build, compared: Callable[..., Comparison]) -> None:
    found = compared(network(build))
    assert (found.totals, found.contract, found.operators, found.edits) == ((), (), (), ())
    assert (found.only_first, found.only_second) == ((), ())
    assert [(pair.first, pair.identical) for pair in found.weights] == [
        ("first", True),
        ("second", True),
        ("third", True),
        ("last", True),
    ]


def test_a_changed_weight_is_found_where_it_is(build: Build, compared: Callable[..., Comparison]) -> None:
    weights = constants()
    weights["w2"][3, 1, 0, 2] += 0.5
    found = compared(network(build, weights))
    changed = [pair for pair in found.weights if not pair.identical]
    assert [pair.first for pair in changed] == ["second"]
    assert changed[0].largest == pytest.approx(0.5)
    assert changed[0].mean == pytest.approx(0.5 / 576)
    assert changed[0].relative == pytest.approx(0.5 / np.abs(constants()["w2"]).max())
    assert (found.totals, found.edits) == ((), ())


def test_a_layer_of_another_width_is_paired_by_its_place(build: Build, compared: Callable[..., Comparison]) -> None:
    weights = constants()
    weights["w2"], weights["w3"] = weights["w2"][:6], weights["w3"][:, :6]
    found = compared(network(build, weights))
    shapes = {pair.first: pair.shapes for pair in found.weights if pair.largest is None}
    assert shapes == {"second": ((8, 8, 3, 3), (6, 8, 3, 3)), "third": ((4, 8, 1, 1), (4, 6, 1, 1))}
    saved = 256 * 2 * (8 * 9 + 4)
    totals = {item.name: (item.first, item.second) for item in found.totals}
    assert totals["MACs"][0] - totals["MACs"][1] == saved


def test_a_missing_node_is_found_behind_its_layer(build: Build, compared: Callable[..., Comparison]) -> None:
    found = compared(network(build, norm=False))
    assert [(edit.after, edit.first, edit.second) for edit in found.edits] == [("first", ("BatchNormalization",), ())]
    assert [(item.name, item.first, item.second) for item in found.operators] == [("BatchNormalization", 1, 0)]


def test_contracts_are_compared_field_by_field(build: Build, tmp_path: Path) -> None:
    for name, contract in (("a", Contract()), ("b", Contract(color_order="rgb", input_size=96))):
        onnx.save(attach_contract(network(build), contract), tmp_path / f"{name}.onnx")
    onnx.save(network(build), tmp_path / "none.onnx")
    first, second, bare = (inspect_file(tmp_path / f"{name}.onnx") for name in ("a", "b", "none"))
    assert {(item.name, item.first, item.second) for item in compare(first, second).contract} == {
        ("color_order", "bgr", "rgb"),
        ("input_size", 112, 96),
    }
    assert [item.name for item in compare(first, bare).contract] == ["contract"]


class Once(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._left = [np.random.default_rng(1).normal(size=(4, 3, 16, 16)).astype(np.float32)]

    def get_next(self) -> dict[str, Float32Array] | None:
        return {"x": self._left.pop()} if self._left else None


@pytest.mark.parametrize("kind", [QuantFormat.QDQ, QuantFormat.QOperator], ids=str)
@pytest.mark.filterwarnings("ignore")  # onnxruntime's quantizer warns of its own API
def test_8_bit_weights_are_read_as_the_numbers_they_stand_for(build: Build, tmp_path: Path, kind: QuantFormat) -> None:
    onnx.save(network(build, norm=False), tmp_path / "a.onnx")
    quantize_static(
        str(tmp_path / "a.onnx"),
        str(tmp_path / "b.onnx"),
        Once(),
        quant_format=kind,
        activation_type=QuantType.QUInt8,
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm"],
    )
    first, second = inspect_file(tmp_path / "a.onnx"), inspect_file(tmp_path / "b.onnx")
    pairs = compare(first, second).weights
    assert [pair.first for pair in pairs] == ["first", "second", "third", "last"]
    assert sum(layer.integer for layer in layer_weights(second.model)) >= 3
    for pair, layer in zip(pairs, layer_weights(first.model), strict=True):
        assert pair.largest is not None
        # Half a step of at most 127 to either side, by the channel with the largest weight.
        assert pair.largest <= np.abs(layer.weight).max() / 127 * 0.51


def test_what_runs_as_one_is_named(build: Build) -> None:
    found = fusion_of(network(build))
    assert set(found.patterns) == {
        FusedPattern(("Conv", "BatchNormalization", "Relu"), "FusedConv", 1),
        FusedPattern(("Conv", "Relu"), "FusedConv", 1),
    }
    assert found.runs_as[:5] == ("in relu1", "in relu1", "FusedConv", "in relu2", "FusedConv")
    assert found.running["Gemm"] == 1
    assert "Relu" not in found.running


@pytest.mark.filterwarnings("ignore")
def test_quantize_and_dequantize_run_inside_of_integer_operators(build: Build, tmp_path: Path) -> None:
    onnx.save(network(build, norm=False), tmp_path / "a.onnx")
    quantize_static(str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), Once(), activation_type=QuantType.QUInt8)
    found = fusion_of(onnx.load(tmp_path / "b.onnx"))
    assert any(pattern.runs_as == "QLinearConv" and "Conv" in pattern.operators for pattern in found.patterns)
    assert found.running["QLinearConv"] == 3


def test_what_is_folded_into_a_constant_is_part_of_its_reader(build: Build) -> None:
    weights = {"one": np.ones(3, np.float32)}
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"], name="sum"),
        helper.make_node("Mul", ["x", "two"], ["y"], name="product"),
    ]
    assert fusion_of(build(nodes, weights, ["n", 3])).runs_as == ("in product", "Mul")


def test_an_unconstant_weight_is_no_layer(build: Build) -> None:
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    assert layer_weights(build(nodes, {}, [4, 4])) == []
