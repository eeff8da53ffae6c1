"""Dense supervision: targets whose mean is the landmark, and a gradient that autograd confirms."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfld_edge_runtime import Contract
from pfld_edge_train.batches import Batch
from pfld_edge_train.config import LossConfig, TrainConfig
from pfld_edge_train.dense_loss import DenseLandmarkLoss, HeatMapExpectations, nearest_cells
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.models import ModelConfig, build_model
from pfld_edge_train.models.edge import cell_places

NETWORK = ModelConfig("pfld-edge-m", 0.25, 32)


@pytest.mark.parametrize(("side", "fine"), [(4, 1), (4, 2), (14, 2)])
def test_the_four_cells_of_a_point_have_it_as_their_mean(side: int, fine: int) -> None:
    torch.manual_seed(0)
    places = cell_places(side, fine)
    inside = places.min() + (places.max() - places.min()) * torch.rand(3, 50, 2)
    cells, shares = nearest_cells(inside, side, fine)
    torch.testing.assert_close(shares.sum(2), torch.ones(3, 50))
    torch.testing.assert_close((places[cells] * shares[..., None]).sum(2), inside)
    reach = 1.2 / (side * fine)
    assert ((places[cells] - inside[:, :, None]).abs() <= reach + 1e-5).all()


def autograd_loss(logits: Tensor, batch: Batch, network: torch.nn.Module) -> Tensor:
    """The same by torch's own softmax and cross-entropy."""
    places = network.get_buffer("fc.grid").double()
    points, weights = batch.landmarks.double(), batch.weights.double()
    by_point = torch.ones(98, dtype=torch.float64)
    by_point[60:76] = 2.2
    by_point /= by_point.mean()
    weights = weights * by_point / batch.weights.sum()
    cells, shares = nearest_cells(points, 4, 2)
    target = torch.zeros_like(logits).scatter_add_(2, cells, shares)
    dense = F.cross_entropy(logits.transpose(1, 2), target.transpose(1, 2), reduction="none")
    chance = logits.softmax(2)
    means = chance @ places
    variances = (chance * (places - means[:, :, None]).square().sum(3)).sum(2).detach()
    known = {name: value.double() for name, value in network.get_submodule("fc.refinement").state_dict().items()}
    doubts, moved = variances.log(), means.flatten(1)
    hidden = F.linear(torch.cat([moved, doubts], 1), known["hidden.weight"], known["hidden.bias"]).clamp(min=0)
    more = F.linear(hidden, known["out.weight"], known["out.bias"])
    moves = F.linear(moved, known["shape.weight"]) + more[:, :196]
    off = means + moves.reshape(3, 98, 2) - points
    doubts = doubts + more[:, 196:]
    truth = (off.detach().square().sum(2) + 1e-6).log()
    eyes = (points[:, 60] - points[:, 72]).norm(dim=1)
    size = torch.maximum(eyes, 0.3 * (points.amax(1) - points.amin(1)).amax(1))
    pulls = 10 * weights / size[:, None]
    upper, lower = [61, 62, 63, 69, 70, 71], [67, 66, 65, 75, 74, 73]
    gaps = ((off[:, upper] - off[:, lower]).square().sum(2) + 1e-6).sqrt()
    lengths = (off.square().sum(2) + 1e-8).sqrt()
    wrong = 0.05 * ((doubts - truth).abs() * weights).sum()
    return (dense * weights).sum() + (lengths * pulls).sum() + (gaps * pulls[:, upper]).sum() + wrong


def test_loss_and_gradient_are_autograds_of_the_formula() -> None:
    torch.manual_seed(0)
    network = build_model(NETWORK)
    for value in network.get_submodule("fc.refinement").parameters():
        value.data.normal_(std=0.02)
    batch = Batch(torch.zeros(0), 0.2 + 0.6 * torch.rand(3, 98, 2), torch.rand(3, 98), torch.zeros(3, 6).bool())
    logits = torch.randn(3, 98, 64) * 3
    ours, expected = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = DenseLandmarkLoss(LossConfig(kind="dense"), Contract(input_size=32), network)(ours, batch)
    reference = autograd_loss(expected, batch, network)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-6)
    loss.backward()
    reference.backward()
    assert ours.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(ours.grad.double(), expected.grad, rtol=1e-4, atol=1e-7)


def test_unusual_faces_teach_their_variances_alone() -> None:
    torch.manual_seed(0)
    batch = Batch(torch.zeros(0), torch.rand(3, 98, 2), torch.rand(3, 98), torch.zeros(3, 6).bool())
    loss = DenseLandmarkLoss(LossConfig(kind="dense"), Contract(input_size=32), build_model(NETWORK))
    found, doubts = torch.rand(3, 196).requires_grad_(), torch.randn(3, 98).requires_grad_()
    loss.of_landmarks(found, doubts, batch, usual=torch.tensor([1.0, 0, 1])).backward()
    assert found.grad is not None
    assert doubts.grad is not None
    assert found.grad.abs().amax(1).bool().tolist() == [True, False, True]
    assert doubts.grad.abs().amax(1).bool().all()


def test_the_closed_form_passes_torchs_gradient_check() -> None:
    torch.manual_seed(0)
    values, points = torch.randn(9, 3).double(), torch.rand(2, 4, 2).double()
    cells, shares = nearest_cells(points, 3, 1)
    weights = torch.rand(2, 4).double()
    logits = torch.randn(2, 4, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: HeatMapExpectations.apply(x, values, cells, shares, weights), logits)


def test_networks_without_heat_maps_are_refused() -> None:
    network = build_model(ModelConfig("pfld-edge-s1", 0.25, 32))
    with pytest.raises(TrainConfigError, match="needs a network with heat maps: pfld-edge-s or pfld-edge-m"):
        DenseLandmarkLoss(LossConfig(kind="dense"), Contract(input_size=32), network)
    with pytest.raises(TrainConfigError, match="leave pose_weight, attribute_weight"):
        TrainConfig.from_dict({"data": [{"path": "a.csv"}], "loss": {"kind": "dense", "eye_normalized": True}})
