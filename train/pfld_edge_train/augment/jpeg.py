"""JPEG's artefacts, computed for a whole batch on any device, without writing a file.

Baseline JPEG (ITU-T T.81): BT.601 full-range colours as in JFIF, chroma halved, 8 x 8 DCT, the tables of Annex K scaled
by quality as the Independent JPEG Group's library does it. Entropy coding loses nothing and is left out.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["jpeg_artefacts", "quantization_tables"]

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""T.81, table K.1."""
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
"""T.81, table K.2."""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""JFIF 1.02: rows are Y, Cb, Cr, columns red, green, blue."""


def quantization_tables(quality: Tensor) -> Tensor:
    """The two quantization tables at each quality, ``(N, 2, 8, 8)``: luminance, chrominance.

    Args:
        quality: ``(N,)`` whole numbers 1 to 100, on the Independent JPEG Group's scale.
    """
    tables = _annex_k(quality.device)
    quality = quality.float()
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    return ((tables * percent[:, None, None, None] + 50) / 100).floor().clamp(1, 255)


def jpeg_artefacts(faces: Tensor, quality: Tensor, color_order: str) -> Tensor:
    """What is left of faces that were saved as JPEG and read again.

    Args:
        faces: ``(N, 3, S, S)`` float32, grey levels 0 to 255.
        quality: ``(N,)`` 1 to 100.
        color_order: ``bgr`` or ``rgb``.

    Returns:
        ``(N, 3, S, S)`` whole grey levels 0 to 255. As libjpeg's to within rounding: see the tests.
    """
    size = faces.shape[-1]
    to_ycc, to_colors, shift = _colors(color_order, faces.device)
    full = -size % 16
    padded = F.pad(faces, (0, full, 0, full), mode="replicate") if full else faces
    # Minus 128 is the DCT's level shift for Y; Cb and Cr are centred on 128 and shifted back by it.
    planes = torch.einsum("dc,nchw->ndhw", to_ycc, padded)
    planes = (planes - shift).round()
    tables = quantization_tables(quality)
    bright = _coded(planes[:, :1], tables[:, :1])
    hue = _coded(F.avg_pool2d(planes[:, 1:], 2).round(), tables[:, 1:])
    restored = torch.cat([bright, _doubled(hue)], dim=1).clamp(-128, 127) + shift
    colors = torch.einsum("cd,ndhw->nchw", to_colors, restored)
    return colors[:, :, :size, :size].round().clamp(0, 255)


def _coded(planes: Tensor, tables: Tensor) -> Tensor:
    """Quantize the 8 x 8 DCT of ``(N, C, H, W)`` planes by ``(N, 1, 8, 8)`` tables; sides are multiples of 8."""
    count, channels, height, width = planes.shape
    transform = _dct(planes.device)
    blocks = planes.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    steps = tables[:, :, None, None]
    levels = ((transform @ blocks @ transform.T) / steps).round()
    restored = (transform.T @ (levels * steps) @ transform).transpose(3, 4)
    return restored.reshape(count, channels, height, width).round()


@lru_cache(maxsize=4)
def _dct(device: torch.device) -> Tensor:
    """The orthonormal DCT-II of 8 values as a matrix (T.81, A.3.3)."""
    index = torch.arange(8, dtype=torch.float32)
    matrix = torch.cos((2 * index + 1) * index[:, None] * (math.pi / 16)) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(device)


@lru_cache(maxsize=4)
def _annex_k(device: torch.device) -> Tensor:
    """Both tables, ``(2, 8, 8)``."""
    return torch.tensor((_LUMINANCE, _CHROMINANCE), dtype=torch.float32).to(device)


@lru_cache(maxsize=4)
def _colors(color_order: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """To YCbCr, back, and the level by which Y is shifted, ``(3, 1, 1)``."""
    matrix = torch.tensor(_TO_YCC, dtype=torch.float64)
    if color_order == "bgr":
        matrix = matrix.flip(1)
    shift = torch.tensor([128.0, 0.0, 0.0])[:, None, None]
    return matrix.float().to(device), torch.linalg.inv(matrix).float().to(device), shift.to(device)


def _doubled(planes: Tensor) -> Tensor:
    """Double both sides with weights 3/4 and 1/4, libjpeg's default for halved chroma."""
    return F.interpolate(planes, scale_factor=2.0, mode="bilinear", align_corners=False)
