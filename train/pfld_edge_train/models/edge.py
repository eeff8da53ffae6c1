"""pfld-edge-s and pfld-edge-m, designed for the speed of onnxruntime on a CPU.

Plain 3x3 convolutions whose widths fill vector registers (multiples of 16), no concatenation, no pooling: networks
with fewer multiplications are slower, because depthwise convolutions and reorders are bound by memory. The
convolutions are MobileOne blocks (arXiv 2206.04040, section 3.2), which fuse into one kernel each; they end in ReLU6,
so that the INT8 network, whose ranges end somewhere, computes what the float one does. Both networks end in heat maps
whose expectation over a softmax ("soft-argmax") is a landmark (Sun et al., "Integral Human Pose Regression", ECCV 2018,
arXiv 1711.08229, section 2), and in a small network on all these landmarks, see `Refinement`.

pfld-edge-s1 and pfld-edge-m1 are the networks that had these names first, pfld-edge-s2 and pfld-edge-m2 those without
`Refinement`, for their checkpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks import MobileOneBlock
from pfld_edge_train.models.landmark_net import LandmarkNet, ModelConfig

STRETCH = 1.2
"""Factor to the cells' places: landmarks may lie outside of the crop, where no mean of cells inside it could."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A network in a few numbers.

    Attributes:
        stem: Channels of the first block, at half the input's size.
        stages: Channels and blocks of each stage; the first block of a stage halves the map.
        fine: Heat maps of a landmark along each side of a cell: with 2, four maps stand for the quarters of a cell.
        bound: Largest activation; None for a plain ReLU.
        refined: Hidden features of the `Refinement`; 0 for none.
    """

    stem: int
    stages: tuple[tuple[int, int], ...]
    fine: int = 1
    bound: float | None = 6.0
    refined: int = 0


SHAPES = {
    "pfld-edge-s": Shape(16, ((32, 1), (64, 2), (128, 2)), refined=32),
    "pfld-edge-m": Shape(16, ((48, 2), (96, 2), (192, 2)), fine=2, refined=64),
    "pfld-edge-s2": Shape(16, ((32, 1), (64, 2), (128, 2))),
    "pfld-edge-m2": Shape(16, ((48, 2), (96, 2), (192, 2)), fine=2),
    "pfld-edge-s1": Shape(16, ((32, 2), (64, 2), (128, 3)), bound=None),
    "pfld-edge-m1": Shape(32, ((48, 2), (96, 2), (192, 2)), bound=None),
}


_LEAST_VARIANCE = 1e-9
"""Of a heat map's places, in squares of the crop's side."""

HEAT = "fc.heat.weight"
"""Name of the layer's weight that gives heat maps."""


def edge_kind(weights: Mapping[str, Tensor]) -> str | None:
    """Tell which of `SHAPES` a state dict without prefixes is, by names and channels; None for another network."""
    channels = [0, 0]
    for name, value in weights.items():
        if value.ndim == 4 and name.startswith(("blocks.0.", "blocks.1.")):
            channels[int(name[7])] = len(value)
    if not channels[0] or not (HEAT in weights or {"fc.weight", "fc.bias"} <= weights.keys()):
        return None
    if HEAT not in weights:
        return "pfld-edge-s1"
    is_small = not any(name.startswith("blocks.6.") for name in weights)
    if not is_small and channels[0] >= channels[1] / 2:
        return "pfld-edge-m1"
    version = "" if "fc.refinement.out.weight" in weights else "2"
    return f"pfld-edge-{'s' if is_small else 'm'}{version}"


def cell_places(side: int, fine: int = 1) -> Tensor:
    """The places of the cells of a map, ``(fine^2 * side^2, 2)``, x and y as fractions of the crop.

    Row by row within each of the `fine` x `fine` maps of a landmark, which interleave as in sub-pixel convolution (Shi
    et al., arXiv 1609.05158, section 3.2): the softmax runs over finer places than any convolution does.
    """
    line = ((torch.arange(side * fine) + 0.5) / (side * fine) - 0.5) * STRETCH + 0.5
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    return torch.cat([places[i::fine, j::fine].reshape(-1, 2) for i in range(fine) for j in range(fine)])


class Refinement(nn.Module):
    """Landmarks and log variances from those of all heat maps: a linear layer and one hidden layer, both residual.

    Each heat map knows its own point; how points of faces lie to each other corrects them, as in an active shape model
    (Cootes et al., "Active Shape Models - Their Training and Application", CVIU 1995). Axes of size 1 keep the products
    three-dimensional: 8 bits are too few for coordinates, and the quantizer leaves such products in float.
    """

    def __init__(self, num_landmarks: int, hidden: int) -> None:
        super().__init__()
        self.num_landmarks = num_landmarks
        self.shape = nn.Linear(2 * num_landmarks, 2 * num_landmarks, bias=False)
        self.hidden = nn.Linear(3 * num_landmarks, hidden)
        self.out = nn.Linear(hidden, 3 * num_landmarks)
        for value in (self.shape.weight, self.out.weight, self.out.bias):  # no correction at first
            nn.init.zeros_(value)

    def forward(self, places: Tensor, log_variances: Tensor) -> tuple[Tensor, Tensor]:
        """Correct landmarks ``(N, 2 * P)``, fractions of the crop, and the logarithms of their variances ``(N, P)``."""
        flat, doubts = places.reshape(-1, 1, 2 * self.num_landmarks), log_variances.reshape(-1, 1, self.num_landmarks)
        out = self.out(self.hidden(torch.cat([flat, doubts], dim=2)).relu())
        moved = flat + self.shape(flat) + out[..., : 2 * self.num_landmarks]
        doubts = doubts + out[..., 2 * self.num_landmarks :]
        return moved.reshape(places.shape), doubts.reshape(log_variances.shape)


class HeatMaps(nn.Module):
    """A map ``(N, C, H, H)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop, and their `LOG_VARIANCES`.

    A 1x1 convolution (`heat`) gives ``fine * fine`` heat maps for each landmark; the landmark is the mean of the cells'
    places (`grid`), refined. Unlike a linear layer over the map, the convolution has the same weights everywhere.
    """

    grid: Tensor

    def __init__(self, channels: int, side: int, num_landmarks: int, fine: int = 1, refined: int = 0) -> None:
        super().__init__()
        self.num_landmarks, self.side, self.fine = num_landmarks, side, fine
        self.heat = nn.Conv2d(channels, num_landmarks * fine**2, 1)
        self.refinement = Refinement(num_landmarks, refined) if refined else None
        self.register_buffer("grid", cell_places(side, fine))

    def logits(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, H)`` to heat maps before their softmax, ``(N, P, cells)`` in the order of `grid`."""
        device = self.grid.device.type
        if torch.is_autocast_enabled(device):
            # Eight bits of a bfloat16 are too few for the exponents of a softmax.
            with torch.autocast(device, enabled=False):
                return self.logits(x.float())
        heat: Tensor = self.heat(x)
        return heat.reshape(-1, self.num_landmarks, len(self.grid))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, H)`` to landmarks ``(N, 2 * num_landmarks)`` and log variances ``(N, num_landmarks)``."""
        device = self.grid.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward(x.float())
        found = self.logits(x).softmax(dim=2) @ self.cell_values()
        return self.refined(found[..., :2].flatten(1), map_log_variances(found))

    def cell_values(self) -> Tensor:
        """Of each cell x, y and their second moment, ``(cells, 3)``: what the heat maps' expectations are taken of."""
        return torch.cat([self.grid, self.grid.square().sum(dim=1, keepdim=True)], dim=1)

    def refined(self, places: Tensor, log_variances: Tensor) -> tuple[Tensor, Tensor]:
        """Correct mean places ``(N, 2 * P)`` and log variances ``(N, P)``, if there is a `Refinement`."""
        return (places, log_variances) if self.refinement is None else self.refinement(places, log_variances)


def map_log_variances(found: Tensor) -> Tensor:
    """Logarithms ``(N, P)`` of the variances of heat maps whose cells' mean values are ``(N, P, 3)``."""
    places, moments = found[..., :2], found[..., 2:]
    return (moments - (places * places).sum(dim=2, keepdim=True)).flatten(1).clamp(min=_LEAST_VARIANCE).log()


def _block_of(config: ModelConfig) -> Callable[..., MobileOneBlock]:
    """Give a network's block; with one convolution branch the side branches are left out too."""
    branches, bound = config.conv_branches, SHAPES[config.kind].bound
    return partial(MobileOneBlock, conv_branches=branches, side_branches=branches > 1, fused=config.fused, bound=bound)


class _PFLDEdge(LandmarkNet):
    """A stem and three stages."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.shape = SHAPES[config.kind]
        block = _block_of(config)
        channels = config.scaled(self.shape.stem)
        blocks = [block(3, channels, 3, 2)]
        for width, depth in self.shape.stages:
            for i in range(depth):
                blocks.append(block(channels, config.scaled(width), 3, 2 if i == 0 else 1))
                channels = config.scaled(width)
        self.blocks = nn.Sequential(*blocks)
        self.feature_channels = config.scaled(self.shape.stages[0][0])

    def maps(self, x: Tensor) -> list[Tensor]:
        """Run the stages on ``(N, 3, S, S)``; give the map of each, at a 4th, 8th and 16th of the size."""
        ends = list(accumulate(depth for _, depth in self.shape.stages))
        maps = []
        for place, block in enumerate(self.blocks):  # the stem comes before the first stage
            x = block(x)
            if place in ends:
                maps.append(x)
        return maps


class PFLDEdge(_PFLDEdge):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    Heat maps on the second stage's map, to which the last one is added (as in feature pyramid networks, Lin et al.,
    arXiv 1612.03144, section 3). At 112 pixels, 98 points and a width factor of 1 pfld-edge-s has 0.4 M parameters and
    38 M multiplications, pfld-edge-m 0.9 M and 96 M. They train without side branches.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        block = _block_of(config)
        middle, last = (config.scaled(width) for width, _ in self.shape.stages[1:])
        self.lateral = block(last, middle, 1, linear=True)
        self.joined = block(middle, middle, 3)
        side, shape = config.input_size // 8, self.shape
        self.fc = HeatMaps(middle, side, config.num_landmarks, shape.fine, shape.refined)

    def joined_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to the map that heat maps are made of, an 8th of the size, and the first stage's."""
        first, middle, last = self.maps(x)
        coarse = F.interpolate(self.lateral(last), scale_factor=2.0, mode="nearest")
        return self.joined(middle + coarse), first

    def logits(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, S, S)`` to heat maps before their softmax, see `HeatMaps.logits`."""
        return self.fc.logits(self.joined_map(x)[0])

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and the first stage's map."""
        joined, first = self.joined_map(x)
        return self.fc(joined)[0], first

    def with_variances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and the logarithms of their variances ``(N, num_landmarks)``."""
        landmarks, log_variances = self.fc(self.joined_map(x)[0])
        return landmarks, log_variances


class HeatMapLogits(nn.Module):
    """A network's `logits` as a module's forward pass, for DistributedDataParallel."""

    def __init__(self, network: LandmarkNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """See `PFLDEdge.logits`."""
        logits: Tensor = self.network.logits(x)  # type: ignore[operator]
        return logits


class PFLDEdgeS1(_PFLDEdge):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop, by a linear layer.

    0.6 M parameters and 41 M multiplications at 112 pixels, 98 points and a width factor of 1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        # Sixteen channels that keep their place on the map: the linear layer must know where, not only what.
        self.head = _block_of(config)(config.scaled(self.shape.stages[-1][0]), 16, 1)
        self.fc = nn.Linear(16 * (config.input_size // 16) ** 2, 2 * config.num_landmarks)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.constant_(self.fc.bias, 0.5)  # every landmark starts at the crop's centre

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and the first stage's map."""
        first, _, last = self.maps(x)
        return self.fc(self.head(last).flatten(1)), first
