"""The photometric part of the augmentation: light, colour, noise, low resolution, blur, occlusion."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pfld_edge_train.augment_config import AugmentConfig

__all__ = ["augment_pixels"]


def augment_pixels(faces: Tensor, config: AugmentConfig, generator: torch.Generator | None = None) -> Tensor:
    """Change what a camera and the world may change.

    Changes that not every face meets run on those faces alone: on a CPU, memory traffic is what augmentation costs.

    Args:
        faces: ``(N, 3, S, S)`` float, grey levels 0 to 255; changed in place.
        config: Strengths.
        generator: Source of chance.

    Returns:
        ``(N, 3, S, S)``, whole grey levels 0 to 255, as a device's uint8 crop has them.
    """
    _occlude(faces, config, generator)
    _light(faces, config, generator)
    for change, probability in (
        (_gray, config.gray),
        (_lower_resolution, config.low_resolution),
        (_blur, config.blur),
    ):
        chosen = (torch.rand(len(faces), generator=generator) < probability).nonzero()[:, 0]
        strength = float(torch.rand(1, generator=generator))
        angle = float(torch.rand(1, generator=generator)) * math.pi
        if len(chosen):
            faces[chosen] = change(faces[chosen], strength, angle)
    _noise(faces, config, generator)
    return faces.clamp_(0, 255).round_()


def _gray(faces: Tensor, strength: float, angle: float) -> Tensor:  # noqa: ARG001 - one signature for all changes
    return faces.mean(dim=1, keepdim=True).expand_as(faces)


def _lower_resolution(faces: Tensor, strength: float, angle: float) -> Tensor:  # noqa: ARG001 - as above
    """Shrink to between 18 and 70 percent and back; one size a batch, so that it stays one call."""
    size = faces.shape[-1]
    small = round(size * (0.18 + 0.52 * strength))
    shrunk = F.interpolate(faces, size=(small, small), mode="area")
    return F.interpolate(shrunk, size=(size, size), mode="bilinear")


def _blur(faces: Tensor, strength: float, angle: float) -> Tensor:
    """Smear along a direction, as motion does: the mean of shifted copies."""
    reach = 1 + 4 * strength
    total = torch.zeros_like(faces)
    shifts = torch.linspace(-reach, reach, 7).tolist()
    for shift in shifts:
        total += faces.roll((round(shift * math.sin(angle)), round(shift * math.cos(angle))), dims=(2, 3))
    return total / len(shifts)


def _light(faces: Tensor, config: AugmentConfig, generator: torch.Generator | None) -> None:
    """Contrast, brightness, colour cast, and light that falls from one side, as one gain and one offset a pixel."""
    count, _, _, size = faces.shape
    chance = torch.rand((count, 7), generator=generator) * 2 - 1
    contrast = torch.exp(chance[:, 0] * config.light * 0.8)
    brightness = chance[:, 1] * config.light * 80
    cast = torch.exp(chance[:, 2:5] * config.color)[:, :, None, None]
    slope = chance[:, 5:] * config.light
    ramp = torch.linspace(-1, 1, size)
    side = torch.exp(slope[:, :1, None] * ramp[:, None] + slope[:, 1:, None] * ramp)[:, None]
    mean = faces.mean(dim=(1, 2, 3))
    offset = (mean * (1 - contrast) + brightness)[:, None, None, None]
    faces.mul_(contrast[:, None, None, None]).add_(offset).mul_(side * cast)


def _noise(faces: Tensor, config: AugmentConfig, generator: torch.Generator | None) -> None:
    """Gaussian noise on half of the faces, mostly weak."""
    chosen = torch.rand(len(faces), generator=generator) < 0.5
    strength = torch.rand((int(chosen.sum()), 1, 1, 1), generator=generator).square() * config.noise
    faces[chosen] += torch.randn((len(strength), *faces.shape[1:]), generator=generator) * strength


def _occlude(faces: Tensor, config: AugmentConfig, generator: torch.Generator | None) -> None:
    """Hide a rectangle of some faces behind a part of another face or behind one colour."""
    size = faces.shape[-1]
    chance = torch.rand((len(faces), 9), generator=generator)
    chosen = chance[:, 0] < config.occlusion
    for i in chosen.nonzero()[:, 0].tolist():
        x, y, half_width, half_height = chance[i, 1:5].tolist()
        half_width, half_height = 0.05 + 0.2 * half_width, 0.05 + 0.2 * half_height
        left, right = (round(size * min(max(x + d, 0), 1)) for d in (-half_width, half_width))
        top, bottom = (round(size * min(max(y + d, 0), 1)) for d in (-half_height, half_height))
        cover = chance[i, 5:8, None, None] * 255
        if chance[i, 8] < 0.5:
            cover = faces[i - 1, :, top:bottom, left:right].flip(1)
        faces[i, :, top:bottom, left:right] = cover
