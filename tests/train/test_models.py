"""The networks: shapes, parameters, feature maps, heat maps."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from scipy.ndimage import center_of_mass
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, relu6

from pfld_edge_train.errors import ModelConfigError
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model
from pfld_edge_train.models.edge import STRETCH, HeatMaps

FILES = {
    "pfld-ghostone": "PFLD_GhostOne_112_1_opt_sim.onnx",
    "pfld-ghostnet": "PFLD_GhostNet_112_1_opt_sim.onnx",
    "pfld-ghostnet-slim": "PFLD_GhostNet_Slim_112_1_opt_sim.onnx",
}

Layer = tuple[tuple[int, ...], bool, int, int, int]
"""Weight shape, whether there is a bias, stride, padding, groups."""


def our_layers(kind: str) -> list[Layer]:
    """List the layers in the order in which they run."""
    layers: list[Layer] = []

    def record(layer: nn.Module, _inputs: object, _output: Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        movement = (1, 0, 1)
        if isinstance(layer, nn.Conv2d):
            movement = (int(layer.stride[0]), int(layer.padding[0]), layer.groups)
        layers.append((tuple(layer.weight.shape), layer.bias is not None, *movement))

    network = build_model(ModelConfig(kind, fused=True)).eval()
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(record)
    with torch.no_grad():
        network(torch.zeros(1, 3, 112, 112))
    return layers


def published_layers(path: Path) -> list[Layer]:
    graph = onnx.load(str(path)).graph
    shapes = {array.name: tuple(array.dims) for array in graph.initializer}
    layers: list[Layer] = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            movement = (found.get("strides", [1])[0], found.get("pads", [0])[0], found.get("group", 1))
            layers.append((shapes[node.input[1]], len(node.input) == 3, *movement))
    return layers


@pytest.mark.parametrize("kind", FILES)
def test_the_inference_network_has_the_published_files_layers_in_order(shared: Path, kind: str) -> None:
    assert our_layers(kind) == published_layers(shared / "models/reference" / FILES[kind])


# Multiply-accumulates of the published files; our own are held to what their documentation claims.
@pytest.mark.parametrize(
    ("kind", "millions"),
    [
        ("pfld-ghostnet", 98.4),
        ("pfld-ghostnet-slim", 81.9),
        ("pfld-ghostone", 74.9),
        ("pfld-edge-s", 35.6),
        ("pfld-edge-m", 96.4),
        ("pfld-edge-s1", 41.3),
        ("pfld-edge-m1", 97.6),
    ],
)
def test_multiplications_are_as_published(kind: str, millions: float) -> None:
    total = 0

    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        total += layer.get_parameter("weight").numel() * (output[0, 0].numel() if output.ndim == 4 else 1)

    network = build_model(ModelConfig(kind, fused=True)).eval()
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 112, 112))
    assert round(total / 1e6, 1) == millions


@pytest.mark.parametrize(("size", "width", "points"), [(32, 0.25, 68), (96, 0.35, 5), (128, 0.7, 98), (112, 1.25, 106)])
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_every_size_width_and_number_of_points_gives_its_output(
    kind: str, size: int, width: float, points: int
) -> None:
    network = build_model(ModelConfig(kind, width, size, points)).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 2 * points)


@pytest.mark.parametrize("size", [0, 16, 100, 120, 4096])
def test_an_impossible_input_size_is_refused_with_a_sentence(size: int) -> None:
    with pytest.raises(ModelConfigError, match=rf"multiple of 16 from 32 to 1024 pixels, not {size}"):
        ModelConfig("pfld", input_size=size)


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ModelConfigError, match=r"unknown model 'pfld-huge'; known: pfld, .*pfld-edge-s"):
        build_model(ModelConfig("pfld-huge"))


@pytest.mark.parametrize("kind", ["pfld-edge-s", "pfld-edge-s1"])
def test_pfld_edge_s_starts_with_every_landmark_near_the_centre(kind: str) -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig(kind)).eval()
    with torch.no_grad():
        landmarks = network(torch.rand(4, 3, 112, 112) * 2 - 1)
    assert (landmarks - 0.5).abs().max() < 0.2


def test_pfld_edge_s_trains_with_one_branch_a_convolution() -> None:
    names = build_model(ModelConfig("pfld-edge-s")).state_dict()
    assert not [name for name in names if "rbr_conv.1" in name or "rbr_scale" in name or "rbr_skip" in name]


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_every_weight_learns(kind: str) -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig(kind, 0.5, 32, 5, conv_branches=2))
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]


@pytest.mark.parametrize(("side", "fine"), [(4, 1), (14, 1), (4, 2)])
def test_a_landmark_is_the_centre_of_mass_of_its_heat_map(side: int, fine: int) -> None:
    torch.manual_seed(side)
    layer = HeatMaps(3, side, 5, fine)
    maps = torch.randn(2, 3, side, side) * 5
    with torch.no_grad():
        # The quarters of a cell interleave as torch's sub-pixel convolution does.
        heat = pixel_shuffle(layer.heat(maps), fine).double().numpy().reshape(10, -1)
        found = layer(maps)[0].numpy().reshape(10, 2)
    centres = [center_of_mass(row.reshape(side * fine, side * fine)) for row in softmax(heat, axis=1)]
    fractions = (np.array(centres)[:, ::-1] + 0.5) / (side * fine)
    np.testing.assert_allclose(found, (fractions - 0.5) * STRETCH + 0.5, atol=1e-5)


def test_in_mixed_precision_the_softmax_stays_in_float32() -> None:
    torch.manual_seed(0)
    layer, maps = HeatMaps(8, 14, 5), torch.randn(2, 8, 14, 14).bfloat16()
    with torch.no_grad():
        torch.nn.init.normal_(layer.heat.weight, std=5.0)
        expected, _ = layer(maps.float())
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = layer(maps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["pfld-edge-s", "pfld-edge-m"])
def test_our_networks_activations_are_bounded_as_relu6_bounds_them(kind: str) -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig(kind, 0.25, 32, 5)).eval()
    faces = torch.randn(2, 3, 32, 32) * 1e4
    with torch.no_grad():
        for block in network.get_submodule("blocks").children():
            linear = block.get_submodule("rbr_conv.0")(faces)
            faces = block(faces)
            torch.testing.assert_close(faces, relu6(linear))
            faces = faces * 1e4
