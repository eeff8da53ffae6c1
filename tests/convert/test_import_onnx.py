"""Published files come back as checkpoints with the same output; foreign files are refused with a sentence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_calib import cut_faces, open_faces, portraits
from pfld_edge_convert.errors import ImportOnnxError
from pfld_edge_convert.export import export_onnx
from pfld_edge_convert.onnx_import import import_onnx
from pfld_edge_runtime import Contract, FaceLandmarker, ModelFileError, prepare_input
from pfld_edge_train.checkpoint import load_model, save_checkpoint
from pfld_edge_train.models import ModelConfig, build_model

FILES = {
    "pfld-ghostone": "PFLD_GhostOne_112_1_opt_sim.onnx",
    "pfld-ghostnet-slim": "PFLD_GhostNet_Slim_112_1_opt_sim.onnx",
}


@pytest.fixture
def published(shared: Path) -> Callable[[str], Path]:
    return lambda kind: shared / "models/reference" / FILES[kind]


def test_the_torch_network_answers_as_the_file_on_real_faces(
    shared: Path, published: Callable[[str], Path], tmp_path: Path
) -> None:
    """The other networks: tests/e2e/test_published_accuracy.py."""
    kind = "pfld-ghostone"
    save_checkpoint(tmp_path / "imported.pth", import_onnx(published(kind)))
    model, checkpoint = load_model(tmp_path / "imported.pth")
    assert checkpoint.model.kind == kind
    faces = [*open_faces(shared / "data/WFLW").load()[:30], *portraits()]
    landmarker = FaceLandmarker(published(kind), contract=Contract())
    for batch in cut_faces(faces, Contract()):
        with torch.no_grad():
            found = model(torch.from_numpy(prepare_input(batch.crops, Contract()))).numpy()
        expected = landmarker.predict_crops(batch.crops).reshape(found.shape)
        assert np.abs(found - expected).max() < 1e-5


def test_names_in_the_file_do_not_matter(published: Callable[[str], Path], tmp_path: Path) -> None:
    model = onnx.load(str(published("pfld-ghostnet-slim")))
    renamed: dict[str, str] = {}

    def rename(name: str) -> str:
        return renamed.setdefault(name, f"v{len(renamed) * 7919 % 100003}") if name else name

    for node in model.graph.node:
        node.name = ""
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
    for values in (model.graph.input, model.graph.output, model.graph.initializer, model.graph.value_info):
        for value in values:
            value.name = rename(value.name)
    for node in model.graph.node:
        if node.op_type == "Add":  # operands may stand in any order
            node.input[:] = node.input[::-1]
    onnx.save(model, str(tmp_path / "renamed.onnx"))
    expected = import_onnx(published("pfld-ghostnet-slim")).weights
    found = import_onnx(tmp_path / "renamed.onnx").weights
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_raw_export_gives_the_weights_of_the_simplified_file(shared: Path, published: Callable[[str], Path]) -> None:
    """Pad nodes that pad nothing and Constant nodes are no obstacle."""
    raw = shared / "models/public/ghostone_raw_export.onnx"
    found, expected = import_onnx(raw).weights, import_onnx(published("pfld-ghostone")).weights
    assert found.keys() == expected.keys()
    assert all((found[name] - expected[name]).abs().max() < 1e-6 for name in expected)


def test_a_file_that_calls_its_own_functions_gives_the_same_weights(
    published: Callable[[str], Path], tmp_path: Path
) -> None:
    """The whole network is one function."""
    model = onnx.load(str(published("pfld-ghostnet-slim")))
    graph = model.graph
    arguments = [graph.input[0].name, *(tensor.name for tensor in graph.initializer)]
    results, opsets = [graph.output[0].name], list(model.opset_import)
    model.functions.append(helper.make_function("own", "Network", arguments, results, graph.node, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.ir_version = 8
    del graph.node[:], graph.value_info[:]
    graph.node.append(helper.make_node("Network", arguments, results, domain="own"))
    onnx.save(model, str(tmp_path / "function.onnx"))
    expected = import_onnx(published("pfld-ghostnet-slim")).weights
    found = import_onnx(tmp_path / "function.onnx").weights
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def small_network(path: Path, op: str) -> Path:
    shape = ["N", 3, 112, 112]
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node(op, ["y"], ["z"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "z")]
    graph = helper.make_graph(
        nodes, "g", values[:1], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)], [weight]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportOnnxError, match="a Sigmoid node, which no network of the PFLD family has"):
        import_onnx(small_network(tmp_path / "other.onnx", "Sigmoid"))


def test_another_graph_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(ImportOnnxError, match=r"expected the graph of pfld.*found 112 x 112 input, 1 convolutions"):
        import_onnx(small_network(tmp_path / "other.onnx", "Relu"))


def test_a_graph_that_only_begins_and_ends_like_one_of_the_family_is_refused(tmp_path: Path) -> None:
    weights = {"w": (64, 3, 3, 3), "f": (196, 64)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["v"]),
        helper.make_node("Gemm", ["v", "f"], ["z"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 196])],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    path = tmp_path / "like.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    with pytest.raises(ImportOnnxError, match="not a published PFLD network: expected the graph of pfld"):
        import_onnx(path)


def test_a_file_that_is_no_onnx_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelFileError, match=r"text\.onnx is not an ONNX model"):
        import_onnx(tmp_path / "text.onnx")


@pytest.mark.parametrize(("kind", "width"), [("pfld", 0.35), ("pfld-ghostone", 0.35)])
def test_other_widths_sizes_and_points_come_back(tmp_path: Path, kind: str, width: float) -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig(kind, width, input_size=64, num_landmarks=68, fused=True)).eval()
    onnx.save(export_onnx(network, 64), str(tmp_path / "small.onnx"))
    checkpoint = import_onnx(tmp_path / "small.onnx")
    assert (checkpoint.model.kind, checkpoint.model.input_size, checkpoint.model.num_landmarks) == (kind, 64, 68)
    assert checkpoint.contract is None  # 68 points: nothing says which
    assert all(torch.equal(checkpoint.weights[name], value) for name, value in network.state_dict().items())


def test_another_precision_is_named(tmp_path: Path) -> None:
    model = onnx.load(str(small_network(tmp_path / "half.onnx", "Relu")))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), "w"))
    onnx.save(model, str(tmp_path / "half.onnx"))
    with pytest.raises(ImportOnnxError, match=r"expected float32 input, found tensor\(float16\)"):
        import_onnx(tmp_path / "half.onnx")
