"""Label assignment and loss of the face detector.

Assignment follows SimOTA (Ge et al., "YOLOX", 2021, section 2.3) within a size range and a centre region of each
stride; scores are trained with the quality focal loss (Li et al., NeurIPS 2020, eq. 3), boxes with DIoU (Zheng et al.,
AAAI 2020), points with L1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detector_model import STRIDES, decode

# Face sizes (square root of the area, pixels) that each stride may take: neighbours overlap.
_LEAST = torch.tensor([0.0, 24.0, 64.0])
_MOST = torch.tensor([64.0, 150.0, 1e9])
_RADIUS = 1.5
_MOST_CELLS = 9


@dataclass(frozen=True, slots=True)
class Targets:
    """Faces of one image: ``boxes (G, 4)``, ``points (G, 3, 2)`` (NaN where unknown), ``ignored (I, 4)`` boxes."""

    boxes: Tensor
    points: Tensor
    ignored: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """Parts of the loss, each a scalar."""

    score: Tensor
    box: Tensor
    points: Tensor

    def total(self) -> Tensor:
        """Weighted sum of the parts."""
        return self.score + 2.0 * self.box + 0.3 * self.points


def iou_and_diou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the same less the normalised centre distance; boxes broadcast over ``(..., 4)``."""
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    iou = common / (areas - common + 1e-6)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return iou, iou - apart.square().sum(-1) / (around.square().sum(-1) + 1e-6)


@torch.no_grad()
def assign(logits: Tensor, boxes: Tensor, faces: Tensor, centers: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """Give each face its cells.

    Args:
        logits: ``(P,)`` predicted scores.
        boxes: ``(P, 4)`` predicted boxes.
        faces: ``(G, 4)`` true boxes, G > 0.
        centers: ``(P, 2)`` cell centres.
        strides: ``(P,)`` strides.

    Returns:
        Indices of the chosen cells and, for each, of its face.
    """
    middle, size = (faces[:, :2] + faces[:, 2:]) / 2, (faces[:, 2:] - faces[:, :2]).prod(-1).clamp(min=1e-3).sqrt()
    away = torch.maximum(*((centers[:, axis][None] - middle[:, axis, None]).abs() for axis in (0, 1)))
    level = torch.bucketize(strides, torch.tensor(STRIDES, dtype=torch.float32))
    allowed = (away < _RADIUS * strides) & (size[:, None] >= _LEAST[level]) & (size[:, None] < _MOST[level])
    cells = allowed.any(0).nonzero()[:, 0]
    allowed = allowed[:, cells]
    iou, _ = iou_and_diou(faces[:, None], boxes[None, cells])
    cost = functional.softplus(-logits[None, cells]) - 3.0 * (iou + 1e-6).log()
    cost = torch.where(allowed, cost, torch.inf)
    count = min(_MOST_CELLS, len(cells))
    wanted = torch.where(allowed, iou, 0.0).topk(count, 1).values.sum(1).int().clamp(1, count)
    least, order = cost.topk(count, 1, largest=False)
    taken = (torch.arange(count)[None] < wanted[:, None]) & least.isfinite()
    chosen = torch.full_like(cost, torch.inf)
    face, rank = taken.nonzero(as_tuple=True)
    chosen[face, order[face, rank]] = least[face, rank]
    best, owner = chosen.min(0)
    positive = best.isfinite()
    return cells[positive], owner[positive]


def detection_loss(cells: Tensor, targets: list[Targets], centers: Tensor, strides: Tensor) -> Losses:
    """Loss of a batch; ``cells (N, P, 11)`` as `detector_model.flatten_maps` gives them."""
    with torch.no_grad():
        boxes, _ = decode(cells, centers, strides)
    logits = cells[..., 0]
    goal, weight = torch.zeros(cells.shape[:2]), torch.ones(cells.shape[:2])
    rows, columns, true_boxes, true_points = [], [], [], []
    for index, target in enumerate(targets):
        if len(target.ignored):
            weight[index, _covered(centers, target.ignored)] = 0.0
        if len(target.boxes):
            cell, face = assign(logits[index].detach(), boxes[index], target.boxes, centers, strides)
            rows.append(torch.full_like(cell, index))
            columns.append(cell)
            true_boxes.append(target.boxes[face])
            true_points.append(target.points[face])
    if not rows:
        zero = cells.sum() * 0.0
        return Losses(_score_loss(logits, goal, weight).sum(), zero, zero)
    row, column = torch.cat(rows), torch.cat(columns)
    faces, marks = torch.cat(true_boxes), torch.cat(true_points)
    # Only the chosen cells carry a gradient for boxes and points.
    found_boxes, found_points = decode(cells[row, column], centers[column], strides[column])
    iou, diou = iou_and_diou(found_boxes, faces)
    quality = 0.5 + 0.5 * iou.detach()
    goal[row, column] = quality
    weight[row, column] = 1.0
    total = quality.sum()
    size = (faces[:, 2:] - faces[:, :2]).prod(-1).clamp(min=1.0).sqrt()
    known = marks.isfinite()
    error = (found_points - marks.nan_to_num(0.0)).abs() / size[:, None, None]
    point_loss = (error * known).sum() / known.sum().clamp(min=1) * 10.0
    return Losses(_score_loss(logits, goal, weight).sum() / total, ((1 - diou) * quality).sum() / total, point_loss)


def _covered(centers: Tensor, boxes: Tensor) -> Tensor:
    """Which cells ``(P,)`` have their centre inside one of the boxes."""
    x, y = centers[:, 0][None], centers[:, 1][None]
    low_x, low_y, high_x, high_y = boxes[:, :, None].unbind(1)
    return ((x > low_x) & (x < high_x) & (y > low_y) & (y < high_y)).any(0)


def _score_loss(logits: Tensor, goal: Tensor, weight: Tensor) -> Tensor:
    apart = (goal - logits.sigmoid()).square()
    return apart * functional.binary_cross_entropy_with_logits(logits, goal, reduction="none") * weight
