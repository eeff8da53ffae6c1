"""The auxiliary network: feature maps in one pass, angles that it learns, and no trace of it in what is exported."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pfld_edge_runtime import Contract
from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS
from pfld_edge_train.batches import Batch
from pfld_edge_train.checkpoint import load_checkpoint
from pfld_edge_train.config import LossConfig
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.models import MODEL_KINDS, AuxiliaryNet, ModelConfig, WithAuxiliary, build_model
from pfld_edge_train.models.edge import PFLDEdge
from pfld_edge_train.pose import head_angles

BUNDLED = Path(__file__).parents[2] / "checkpoints"


@pytest.mark.parametrize(("size", "width"), [(64, 0.35), (32, 0.7)])
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_every_network_gives_its_map_at_a_quarter_of_the_input(kind: str, size: int, width: float) -> None:
    network = build_model(ModelConfig(kind, width, size)).eval()
    with torch.no_grad():
        landmarks, features = network.forward_features(torch.zeros(2, 3, size, size))
        assert features.shape == (2, network.feature_channels, size // 4, size // 4)
        assert AuxiliaryNet(network.feature_channels, size).eval()(features).shape == (2, 3)
        assert torch.equal(landmarks, network(torch.zeros(2, 3, size, size)))


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_the_map_is_not_the_beginning_only_and_comes_from_the_same_pass(kind: str) -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig(kind, 0.35, 32, 5))
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    landmarks, features = network.forward_features(torch.randn(4, 3, 32, 32))
    assert all(int(norm.num_batches_tracked or 0) == 1 for norm in norms), "one pass moves the statistics once"
    (landmarks.sum() + features.square().sum()).backward()
    early = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not early


def test_its_layers_are_those_of_the_papers_table_2() -> None:
    layers = [module for module in AuxiliaryNet(64).modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [
        (128, 64, 3, 3),
        (128, 128, 3, 3),
        (32, 128, 3, 3),
        (128, 32, 7, 7),
        (32, 128),
        (3, 32),
    ]
    assert [layer.stride[0] for layer in layers if isinstance(layer, torch.nn.Conv2d)] == [2, 1, 2, 1]


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.pth")), ids=lambda path: path.stem)
def test_the_bundled_checkpoints_names_are_the_networks(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert set(build_model(checkpoint.model).state_dict()) == set(checkpoint.weights)


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_the_graph_that_is_exported_has_one_output_and_variances_of_heat_maps_and_no_dead_end(kind: str) -> None:
    network = build_model(ModelConfig(kind, 0.35, 32, 5, fused=True)).eval()
    tracer = torch.fx.Tracer()
    if heat_maps := isinstance(network, PFLDEdge):
        tracer.traced_func_name = "with_variances"
    graph = torch.fx.GraphModule(network, tracer.trace(network)).graph
    output = next(node for node in graph.nodes if node.op == "output")
    assert len(output.all_input_nodes) == 1 + heat_maps
    assert not graph.eliminate_dead_code()


def drawn(count: int, seed: int) -> Batch:
    """Heads as coloured discs at their rigid points; all other landmarks lie on the nose."""
    random = np.random.default_rng(seed)
    yaw, pitch, roll = random.uniform(-50, 50, (count, 3)).T
    turns = Rotation.from_euler("ZYX", np.stack([roll, -yaw, -pitch], axis=1), degrees=True).as_matrix()
    placed = FACE_SHAPE @ turns.transpose(0, 2, 1) + (0, 0, 900)
    points = placed[..., :2] / placed[..., 2:] * 6 + 0.5
    landmarks = np.repeat(points[:, 7:8], 98, axis=1)
    landmarks[:, RIGID_POINTS] = points
    colors = np.random.default_rng(0).uniform(-1, 1, (17, 3))
    faces = np.zeros((count, 32, 32, 3), np.float32)
    for face, places, depths in zip(faces, points, placed[..., 2], strict=True):
        for number in np.argsort(-depths):
            center = tuple((places[number] * 32 * 16).astype(int).tolist())
            cv2.circle(face, center, 24, colors[number].tolist(), -1, cv2.LINE_8, 4)
    pixels = torch.from_numpy(faces).permute(0, 3, 1, 2).contiguous()
    weights, attributes = torch.ones(count, 98), torch.zeros(count, 6, dtype=torch.bool)
    return Batch(pixels, torch.from_numpy(landmarks).float(), weights, attributes)


def test_it_learns_the_angles_of_drawn_heads_beside_the_landmarks() -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig("pfld-edge-s1", 0.5, 32))
    both = WithAuxiliary(network, AuxiliaryNet(network.feature_channels, 32)).train()
    loss = LandmarkLoss(LossConfig(pose_weight="deviation", auxiliary_weight=1.0), 32, Contract(input_size=32))
    optimizer = torch.optim.AdamW(both.parameters(), lr=3e-3)
    for step in range(60):
        batch = drawn(32, step)
        landmarks, angles = both(batch.faces)
        optimizer.zero_grad()
        loss(landmarks.view(32, 98, 2), batch, angles).backward()
        optimizer.step()
    unseen = drawn(64, 1000)
    with torch.no_grad():
        landmarks, angles = both.eval()(unseen.faces)
    true = head_angles(unseen.landmarks)
    assert (angles - true).abs().mean() < 0.4 * true.abs().mean()
    spread = (unseen.landmarks - unseen.landmarks.mean(dim=0)).norm(dim=2).mean()
    assert (landmarks.view(64, 98, 2) - unseen.landmarks).norm(dim=2).mean() < 0.5 * spread
