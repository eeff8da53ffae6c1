"""Networks with heat maps: plain 3x3 convolutions, bounded activations, a soft-argmax over fine cells.

The body is pfld-edge-m's: a stem and three stages, each beginning with a stride of 2; the second stage's map is told
what the last one knows (1x1, doubled, added, 3x3). The head is one 1x1 convolution. With `fine` = 2 it gives four heat
maps a landmark, one for each quarter of a 14 x 14 cell (as sub-pixel convolution does, Shi et al., arXiv 1609.05158,
section 3.2): the softmax runs over 28 x 28 places, although no convolution does.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRETCH = 1.2
"""Landmarks may lie beyond the crop's edge: the outermost cells stand for places there."""


@dataclass(frozen=True)
class Shape:
    """A network in a few numbers.

    Attributes:
        stem: Channels at half the input's size.
        stages: Channels and blocks of each stage.
        joined: Blocks of 3x3 on the second stage's map after it was told.
        fine: Quarters (2) or whole cells (1) of the head's heat maps.
        bound: Largest activation; None for a plain ReLU.
    """

    stem: int
    stages: tuple[tuple[int, int], ...]
    joined: int = 1
    fine: int = 2
    bound: float | None = 6.0


SHAPES = {
    "m": Shape(16, ((48, 2), (96, 2), (192, 2))),
    "s": Shape(16, ((32, 1), (64, 2), (128, 2)), fine=1),

}


class ConvBlock(nn.Sequential):
    """Convolution, BatchNorm, ReLU6."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, bound: float | None = 6.0, linear: bool = False) -> None:
        super().__init__(
            nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.Identity() if linear else nn.ReLU(inplace=True) if bound is None else nn.Hardtanh(0.0, bound, inplace=True),
        )


def cell_places(side: int, fine: int) -> Tensor:
    """Places of the head's cells, ``(fine^2 * side^2, 2)``: quarter by quarter, rows first within each."""
    line = ((torch.arange(side * fine) + 0.5) / (side * fine) - 0.5) * STRETCH + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([x, y], -1)
    return torch.cat([places[i::fine, j::fine].reshape(-1, 2) for i in range(fine) for j in range(fine)])


class HeatMapNet(nn.Module):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * P)``, fractions of the crop."""

    def __init__(self, shape: Shape, input_size: int = 112, points: int = 98) -> None:
        super().__init__()
        self.shape, self.points, self.side = shape, points, input_size // 8
        blocks, channels, ends = [ConvBlock(3, shape.stem, 3, 2, shape.bound)], shape.stem, []
        for width, depth in shape.stages:
            for i in range(depth):
                blocks.append(ConvBlock(channels, width, 3, 2 if i == 0 else 1, shape.bound))
                channels = width
            ends.append(len(blocks))
        self.blocks, self.ends = nn.ModuleList(blocks), ends
        middle = shape.stages[1][0]
        self.lateral = ConvBlock(channels, middle, 1, linear=True)
        self.joined = nn.Sequential(*(ConvBlock(middle, middle, 3, 1, shape.bound) for _ in range(shape.joined)))
        self.heat = nn.Conv2d(middle, points * shape.fine**2, 1)
        self.register_buffer("places", cell_places(self.side, shape.fine))

    def logits(self, x: Tensor) -> Tensor:
        """``(N, P, cells)``, in the order of `places`."""
        maps = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number in self.ends:
                maps.append(x)
        told = F.interpolate(self.lateral(maps[2]), scale_factor=2.0, mode="nearest")
        joined = self.joined(maps[1] + told)
        with torch.autocast("cpu", enabled=False):
            heat = F.conv2d(joined.float(), self.heat.weight.float(), self.heat.bias.float())
        # Channels are (landmark, quarter): each landmark's cells lie side by side.
        return heat.flatten(2).reshape(x.shape[0], self.points, self.shape.fine**2 * self.side**2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.logits(x).softmax(2) @ self.places).flatten(1)
