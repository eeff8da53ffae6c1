"""Dense supervision of heat maps: cross-entropy over all places, and the error of the mean place.

A landmark's coordinates tell a network two numbers a point; where on its heat map the mass must and must not be tells
it hundreds. The target is split bilinearly over the four nearest places, whose mean it is: coarse heat
maps then carry no error of rounding (H3R, Yu and Tao, arXiv 2009.00225, section 3.2, takes one of the four at random;
this is its expectation). The error of the mean place is that of integral regression (Sun et al., arXiv
1711.08229, section 2), which is what the network is used for.
"""

from typing import Any

import torch
from torch import Tensor

from pfld_edge_runtime import WFLW_98, Contract
from pfld_edge_train.batches import Batch
from pfld_edge_train.config import LossConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.models import LandmarkNet
from pfld_edge_train.models.edge import STRETCH, PFLDEdge, map_log_variances

_UPPER, _LOWER = [61, 62, 63, 69, 70, 71], [67, 66, 65, 75, 74, 73]
"""Facing points of the lids in WFLW's order."""
_LEAST_ERROR = 1e-3
"""Fractions of the crop's side, added to errors: smaller ones are chance."""
_DOUBT_SHARE = 0.05
_LEAST_EYES = 0.3
"""Least size of a face as a share of its box: in large pose the eyes' distance vanishes."""


def nearest_cells(points: Tensor, side: int, fine: int) -> tuple[Tensor, Tensor]:
    """Find the four nearest cells of points ``(N, P, 2)`` and their shares, ``(N, P, 4)`` each.

    Cells are indices into `pfld_edge_train.models.edge.cell_places`; the shares sum to 1, and the cells' places, so
    weighted, to the point. Points beyond the outermost cells' places count as those.
    """
    count = side * fine
    place = (((points - 0.5) / STRETCH + 0.5) * count - 0.5).clamp(0, count - 1)
    low = place.floor().clamp(max=count - 2)
    share = place - low
    x = low[..., :1].long() + torch.tensor([0, 1, 0, 1], device=points.device)
    y = low[..., 1:].long() + torch.tensor([0, 0, 1, 1], device=points.device)
    along_x = torch.stack([1 - share[..., 0], share[..., 0]], dim=-1).repeat(1, 1, 2)
    along_y = torch.stack([1 - share[..., 1], share[..., 1]], dim=-1).repeat_interleave(2, dim=2)
    quarter = (y % fine) * fine + x % fine
    return quarter * side * side + (y // fine) * side + x // fine, along_x * along_y


def face_sizes(points: Tensor, eyes: tuple[int, int]) -> Tensor:
    """Sizes ``(N,)`` of faces with landmarks ``(N, P, 2)``: the eyes' distance, at least 0.3 of the box."""
    distance = (points[:, eyes[0]] - points[:, eyes[1]]).norm(dim=1)
    return torch.maximum(distance, _LEAST_EYES * (points.amax(1) - points.amin(1)).amax(1)).clamp_min(1e-6)


class HeatMapExpectations(torch.autograd.Function):
    """Cross-entropies and expectations of heat maps, with the gradient in closed form.

    Autograd needs a dozen passes over the ``(N, P, cells)`` maps for the same: a fifth of a step's time.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context
        logits: Tensor,
        values: Tensor,
        cells: Tensor,
        shares: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Sum of cross-entropies by `weights` ``(N, P)``; expectations ``(N, P, V)`` of the cells' ``(cells, V)``."""
        chance = logits.softmax(2)
        found = chance @ values
        at = chance.gather(2, cells).clamp(min=1e-12)
        ctx.save_for_backward(chance, values, cells, shares, weights, found)
        return -((at.log() * shares).sum(2) * weights).sum(), found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, pull: Tensor) -> Any:  # noqa: ANN401
        """Of the logits; the other inputs are constants."""
        chance, values, cells, shares, weights, found = ctx.saved_tensors
        weights = weights * gradient
        slope = pull @ values.T
        slope += (weights - (pull * found).sum(2))[..., None]
        slope *= chance
        slope.scatter_add_(2, cells, -shares * weights[..., None])
        return slope, *[None] * 4


class DenseLandmarkLoss:
    """The loss of a training step on heat maps before their softmax; takes the place of `LandmarkLoss`.

    The mean over landmarks, by weight, of the cross-entropy plus ``dense_error`` times the landmark's distance over the
    face's size (eye distance, at least 0.3 of the box). With WFLW's points the 16 of the lids count
    ``dense_lid_weight`` times, and the distance between facing lid points is a term of its own: openness is made of
    these distances, which errors that both lids share don't change. Where landmarks are refined, the logarithm of
    their variance shall be that of their squared error.
    """

    def __init__(self, config: LossConfig, contract: Contract, network: LandmarkNet) -> None:
        """Check that the network has heat maps; TrainConfigError where not."""
        if not isinstance(network, PFLDEdge):
            raise TrainConfigError("loss: kind = 'dense' needs a network with heat maps: pfld-edge-s or pfld-edge-m")
        self._error, scheme = config.dense_error, contract.landmarks
        self._eyes, head = scheme.normalizing_points, network.fc
        self._head = head
        self._by_point = torch.ones(scheme.num_landmarks)
        self._lids: tuple[list[int], list[int]] | None = None
        if scheme == WFLW_98:
            self._by_point[60:76] = config.dense_lid_weight
            self._by_point /= self._by_point.mean()
            self._lids = _UPPER, _LOWER

    def __call__(
        self, predicted: Tensor, batch: Batch, _angles: Tensor | None = None, normalizer: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of logits ``(N, P, cells)``, a scalar; see `LandmarkLoss`."""
        head, weights = self._head, self._weights(batch, normalizer)
        cells, shares = nearest_cells(batch.landmarks, head.side, head.fine)
        loss, found = HeatMapExpectations.apply(  # type: ignore[no-untyped-call]
            predicted.float(), head.cell_values(), cells, shares, weights
        )
        # The heat maps' variances are learned from the cross-entropy alone.
        landmarks, doubts = head.refined(found[..., :2].flatten(1), map_log_variances(found.detach()))
        total: Tensor = loss + self.of_landmarks(landmarks, doubts, batch, normalizer)
        return total

    def of_landmarks(
        self,
        landmarks: Tensor,
        log_variances: Tensor,
        batch: Batch,
        normalizer: Tensor | None = None,
        usual: Tensor | float = 1.0,
    ) -> Tensor:
        """Compute all but the cross-entropy, of landmarks ``(N, 2 * P)`` and the logarithms of their variances.

        Errors count by `usual`, ``(N,)`` or for all faces; of faces whose landmarks can't be learned, where it is 0,
        the variances alone.
        """
        weights, off = self._weights(batch, normalizer), landmarks.view_as(batch.landmarks) - batch.landmarks
        pulls = self._error * weights * (usual / face_sizes(batch.landmarks, self._eyes))[:, None]
        squares = off.square().sum(2)
        loss = ((squares + 1e-8).sqrt() * pulls).sum()
        if self._lids is not None:
            upper, lower = self._lids
            wide = ((off[:, upper] - off[:, lower]).square().sum(2) + 1e-6).sqrt()
            loss = loss + (wide * pulls[:, upper]).sum()
        if self._head.refinement is not None:
            surprise = log_variances - (squares.detach() + _LEAST_ERROR**2).log()
            loss = loss + _DOUBT_SHARE * (surprise.abs() * weights).sum()
        return loss

    def _weights(self, batch: Batch, normalizer: Tensor | None) -> Tensor:
        total = batch.weights.sum() if normalizer is None else normalizer
        return batch.weights * self._by_point.to(batch.weights.device) / total
