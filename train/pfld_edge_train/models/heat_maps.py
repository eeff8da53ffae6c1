"""Landmarks as the mean places of heat maps.

The expectation over a softmax ("soft-argmax"): Sun et al., "Integral Human Pose Regression", ECCV 2018, arXiv
1711.08229, section 2. Unlike a linear layer over all places of a map it has the same weights everywhere, so that what
it learns of a landmark at one place holds at all of them.
"""

import torch
from torch import Tensor, nn

__all__ = ["HeatMaps", "cell_places", "mean_places"]

STRETCH = 1.2
"""Landmarks may lie beyond the crop's edge, where no mean of cells inside could: the outermost cells stand for that."""


def cell_places(side: int) -> Tensor:
    """Give the places that the cells of a map stand for, ``(side * side, 2)``, x and y as fractions of the crop."""
    line = ((torch.arange(side) + 0.5) / side - 0.5) * STRETCH + 0.5
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).view(-1, 2)


def mean_places(heat: Tensor, places: Tensor) -> Tensor:
    """Map heat maps ``(N, P, H, H)`` before their softmax, and the cells' places, to landmarks ``(N, 2 * P)``."""
    return (heat.flatten(2).softmax(dim=2) @ places).flatten(1)


class HeatMaps(nn.Module):
    """A map ``(N, C, H, H)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    Each landmark has a heat map, from a 1x1 convolution; its place is the mean of the cells' places.

    Attributes:
        heat: The convolution.
        grid: ``(H * H, 2)``, x and y of the cells, fractions of the crop.
    """

    grid: Tensor

    def __init__(self, channels: int, side: int, num_landmarks: int) -> None:
        """Build the layer.

        Args:
            channels: C.
            side: H.
            num_landmarks: Points a face.
        """
        super().__init__()
        self.heat = nn.Conv2d(channels, num_landmarks, 1)
        self.register_buffer("grid", cell_places(side))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, H)`` to ``(N, 2 * num_landmarks)``."""
        device = self.grid.device.type
        if torch.is_autocast_enabled(device):
            # Eight bits of a bfloat16 are too few for the exponents of a softmax.
            with torch.autocast(device, enabled=False):
                return mean_places(self.heat(x.float()), self.grid)
        return mean_places(self.heat(x), self.grid)
