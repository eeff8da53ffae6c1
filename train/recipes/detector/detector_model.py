"""An anchor-free face detector of plain 3x3 convolutions, made to run fast in INT8 on onnxruntime's CPU provider.

Three output maps of strides 8, 16 and 32 with 11 channels each, one prediction a cell, as in YuNet (Wu et al., MIR
2023) with one score in place of class and objectness:

====== ==========================================================================================
0      score, logit
1, 2   box centre minus cell centre, in strides (x, y)
3, 4   log of the box's width and height, in strides
5..10  left eye, right eye, mouth centre (left and right in the upright image), each minus the cell centre, in strides
====== ==========================================================================================

The cell centre is ``(column + 0.5, row + 0.5) * stride``. Input: BGR ``(p - 128) / 128``, ``(N, 3, H, W)``, H and W
multiples of 32.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

STRIDES = (8, 16, 32)
CHANNELS = 11
MEAN, SCALE = 128.0, 128.0


@dataclass(frozen=True, slots=True)
class DetectorShape:
    """Widths (channels) and depths (extra 3x3 convolutions) of the stages.

    Attributes:
        stem: Width at stride 4, made by one 6x6 convolution from the pixels: one matrix product, several times
            cheaper in INT8 than two strided 3x3 convolutions of three and sixteen channels.
        widths: Widths at strides 8, 16 and 32.
        depths: Convolutions after the strided one at strides 8, 16 and 32.
        neck: Width of the feature pyramid and of the heads.
    """

    stem: int = 24
    widths: tuple[int, int, int] = (32, 64, 64)
    depths: tuple[int, int, int] = (2, 1, 1)
    neck: int = 32

    def to_dict(self) -> dict[str, Any]:
        """Give the arguments that make an equal shape."""
        return asdict(self)


class ConvBlock(nn.Sequential):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int | None = None) -> None:
        convolution = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2 if padding is None else padding, bias=False
        )
        super().__init__(convolution, nn.BatchNorm2d(outputs, momentum=0.03), nn.ReLU(inplace=True))


class FaceDetectorNet(nn.Module):
    """Backbone of four stages, top-down feature pyramid, one head a stride."""

    def __init__(self, shape: DetectorShape) -> None:
        super().__init__()
        self.shape = shape
        self.stem = ConvBlock(3, shape.stem, kernel=6, stride=4, padding=1)
        stages, inputs = [], shape.stem
        for width, depth in zip(shape.widths, shape.depths, strict=True):
            stages.append(
                nn.Sequential(ConvBlock(inputs, width, stride=2), *(ConvBlock(width, width) for _ in range(depth)))
            )
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(ConvBlock(width, shape.neck, kernel=1) for width in shape.widths)
        self.heads = nn.ModuleList(ConvBlock(shape.neck, shape.neck) for _ in STRIDES)
        self.outputs = nn.ModuleList(nn.Conv2d(shape.neck, CHANNELS, 1) for _ in STRIDES)
        self._initialise()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict ``(N, 11, H / s, W / s)`` for the strides 8, 16 and 32."""
        features, x = [], self.stem(image)
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            features.append(lateral(x))
        p8, p16, p32 = features
        p16 = p16 + functional.interpolate(p32, scale_factor=2.0, mode="nearest")
        p8 = p8 + functional.interpolate(p16, scale_factor=2.0, mode="nearest")
        m8, m16, m32 = (
            output(head(p)) for output, head, p in zip(self.outputs, self.heads, (p8, p16, p32), strict=True)
        )
        return m8, m16, m32

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for output in self.outputs:
            nn.init.normal_(output.get_parameter("weight"), std=0.01)
            # Few cells hold a face: a low first score keeps the first losses small (Lin et al., 2017, section 4.1).
            output.get_parameter("bias").data = torch.tensor([-4.6, 0.0, 0.0, 0.7, 0.7] + [0.0] * 6)


def fold_batch_norm(net: FaceDetectorNet) -> nn.Module:
    """Give a copy in evaluation mode with every batch normalisation folded into its convolution."""
    folded = FaceDetectorNet(net.shape)
    folded.load_state_dict(net.state_dict())
    folded.eval()
    for module in list(folded.modules()):
        if isinstance(module, ConvBlock):
            convolution, norm = module[0], module[1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[0] = fuse_conv_bn_eval(convolution, norm)
            module[1] = nn.Identity()
    return folded


def cell_grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Cell centres ``(P, 2)`` in pixels and strides ``(P,)`` of all cells, finest map first, row by row."""
    centers, strides = [], []
    for stride in STRIDES:
        rows, columns = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        centers.append((torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((len(centers[-1]),), float(stride)))
    return torch.cat(centers), torch.cat(strides)


def flatten_maps(maps: tuple[Tensor, ...]) -> Tensor:
    """Join the maps to ``(N, P, 11)`` float32, in the order of `cell_grid`."""
    return torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2).float()


def decode(cells: Tensor, centers: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes ``(..., P, 4)`` (x0, y0, x1, y1) and points ``(..., P, 3, 2)`` in pixels of the input."""
    step = strides[:, None]
    middle = centers + cells[..., 1:3] * step
    half = cells[..., 3:5].clamp(-4.0, 4.5).exp() * step / 2
    points = centers[:, None] + cells[..., 5:].reshape(*cells.shape[:-1], 3, 2) * step[:, None]
    return torch.cat([middle - half, middle + half], -1), points
