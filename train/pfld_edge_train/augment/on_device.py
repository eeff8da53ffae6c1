"""Renders a plan with torch, the whole batch at once, on any device: without a loop over faces.

It computes what `on_cpu` computes face by face; tests compare the two. Which faces get a change is decided on the host,
so that nothing waits for the device. JPEG's artefacts are computed without a file: baseline JPEG (ITU-T T.81), BT.601
full-range colours as in JFIF, chroma halved, 8 x 8 DCT, the tables of Annex K scaled by quality as the Independent JPEG
Group's library does it. Entropy coding is lossless and left out.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pfld_edge_train.augment.geometry import supersampling, warp_pictures
from pfld_edge_train.augment.occlusions import Occlusions, shape_bank
from pfld_edge_train.augment.photometry import BANK_STD, Photometry, blur_kernels, luma, noise_bank, resolution_matrices
from pfld_edge_train.augment.plan import AugmentPlan
from pfld_edge_train.face_sources import Crops


def render_on_device(crops: Crops, plan: AugmentPlan, size: int, color_order: str, device: torch.device) -> Tensor:
    """Crop and augment the faces of a plan.

    Args:
        crops: ``(M, H, W, 3)``, the whole cache; only the plan's rows are read and sent to the device.
        plan: Of N faces.
        size: Side of the result in pixels.
        color_order: ``bgr`` or ``rgb``.
        device: Where to compute.

    Returns:
        ``(N, 3, size, size)`` float32 on the device, whole grey levels 0 to 255.
    """
    affines = plan.frames.affines(size)
    sources = _pictures(crops, plan.rows, device)
    change = plan.change
    if change is None:
        return _levels(warp_pictures(sources, affines, size))
    factors = supersampling(affines, change.smooth)
    faces = _levels(warp_pictures(sources, affines, size))
    for factor in sorted(set(factors[factors > 1].tolist())):
        chosen, index = _chosen(factors == factor, device)
        faces[index] = _levels(warp_pictures(sources[index], affines[chosen], size, factor))
    for occlusions in change.occlusions:
        _occlude(faces, crops, occlusions)
    _tone(faces, change.photometry)
    _blur(faces, change.photometry)
    _narrow(faces, change.photometry)
    _add_noise(faces, change.photometry)
    _finish(faces, change.photometry, color_order)
    return faces


def _pictures(crops: Crops, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Send crops as bytes, a quarter of the traffic, and convert them to ``(N, 3, H, W)`` floats there."""
    picked = torch.from_numpy(np.ascontiguousarray(crops[rows]))
    if device.type == "cuda":
        # A thread of its own begins on the first GPU, and pinning belongs to the current one.
        with torch.cuda.device(device):
            picked = picked.pin_memory()
    return picked.to(device, non_blocking=True).permute(0, 3, 1, 2).float()


def _levels(faces: Tensor) -> Tensor:
    """Whole grey levels, as bytes would hold them; in place."""
    return faces.clamp_(0, 255).round_()


def _chosen(shown: NDArray[np.bool_], device: torch.device) -> tuple[NDArray[np.int64], Tensor]:
    """Indices on the host and on the device."""
    chosen = np.flatnonzero(shown)
    return chosen, torch.from_numpy(chosen).to(device)


def _sent(values: NDArray[np.generic], like: Tensor) -> Tensor:
    """Float32 numbers beside the faces."""
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(like.device)


def _occlude(faces: Tensor, crops: Crops, occlusions: Occlusions) -> None:
    """Draw one layer of occlusions onto the faces that have one."""
    chosen, index = _chosen(occlusions.shown, faces.device)
    if not len(chosen):
        return
    size = faces.shape[-1]
    bank = _shapes(faces.device)
    shapes = bank[torch.from_numpy(occlusions.shape[chosen]).to(faces.device)].float()
    opacity = warp_pictures(shapes, occlusions.affines[chosen], size) * (
        _per_face(occlusions.opacity[chosen], faces) / 255
    )
    occlusion = _sent(occlusions.color[chosen], faces)[:, :, None, None].expand(-1, -1, size, size).clone()
    textured, place = _chosen(occlusions.texture[chosen] > 0, faces.device)
    if len(textured):
        donors = chosen[textured]
        skin = warp_pictures(_pictures(crops, occlusions.donor[donors], faces.device), occlusions.skin[donors], size)
        occlusion[place] += (skin - occlusion[place]) * _per_face(occlusions.texture[donors], faces)
    under = faces[index]
    faces[index] = _levels(under + (occlusion - under) * opacity)


def _tone(faces: Tensor, photometry: Photometry) -> None:
    """Gamma, gain and offset of every channel, side light."""
    chosen, index = _chosen(photometry.gamma != 1, faces.device)
    if len(chosen):
        exponent = _per_face(photometry.gamma[chosen], faces)
        faces[index] = _levels(255 * (faces[index] / 255) ** exponent)
    faces *= _sent(photometry.gain, faces)[:, :, None, None]
    faces += _sent(photometry.offset, faces)[:, :, None, None]
    _levels(faces)
    chosen, index = _chosen((photometry.slopes != 0).max(axis=1), faces.device)
    if len(chosen):
        line = torch.linspace(-1, 1, faces.shape[-1], device=faces.device)
        slopes = _sent(photometry.slopes[chosen], faces)[:, :, None, None]
        field = torch.exp(slopes[:, :1] * line + slopes[:, 1:] * line[:, None])
        faces[index] = _levels(faces[index] * field)


def _blur(faces: Tensor, photometry: Photometry) -> None:
    """Filter each blurred face by its own kernel."""
    chosen, index = _chosen(photometry.blur_kind > 0, faces.device)
    if not len(chosen):
        return
    size = faces.shape[-1]
    kernels = _sent(blur_kernels(photometry, size)[0], faces)
    radius = kernels.shape[-1] // 2
    padded = F.pad(faces[index], (radius,) * 4, mode="replicate")
    # Every channel of every face is a group of its own.
    grouped = padded.reshape(1, -1, *padded.shape[2:])
    weights = kernels.repeat_interleave(3, dim=0)[:, None]
    filtered = F.conv2d(grouped, weights, groups=len(weights))
    faces[index] = _levels(filtered.reshape(-1, 3, size, size))


def _narrow(faces: Tensor, photometry: Photometry) -> None:
    """Low resolution: a matrix on either side of each face."""
    chosen, index = _chosen(photometry.narrow > 0, faces.device)
    if len(chosen):
        sides = torch.from_numpy(photometry.narrow[chosen]).to(faces.device)
        matrices = _resolutions(faces.shape[-1], faces.device)[sides][:, None]
        faces[index] = _levels(matrices @ faces[index] @ matrices.mT)


def _add_noise(faces: Tensor, photometry: Photometry) -> None:
    """Add the noise bank, which is laid out as rows of pixels with their channels."""
    chosen, index = _chosen(photometry.noise > 0, faces.device)
    if not len(chosen):
        return
    size = faces.shape[-1]
    values = 3 * size * size
    starts = torch.from_numpy(photometry.noise_start[chosen]).to(faces.device)
    noise = _noise(values, faces.device)[starts[:, None] + torch.arange(values, device=faces.device)].float() - 128
    strength = _per_face(photometry.noise[chosen] / BANK_STD, faces)
    faces[index] = _levels(faces[index] + noise.view(-1, size, size, 3).permute(0, 3, 1, 2) * strength)


def _finish(faces: Tensor, photometry: Photometry, color_order: str) -> None:
    """Grey faces, then JPEG."""
    chosen, index = _chosen(photometry.gray, faces.device)
    if len(chosen):
        shares = _sent(luma(color_order), faces)[:, None, None]
        faces[index] = _levels((faces[index] * shares).sum(dim=1, keepdim=True).repeat(1, 3, 1, 1))
    chosen, index = _chosen(photometry.jpeg > 0, faces.device)
    if len(chosen):
        quality = torch.from_numpy(photometry.jpeg[chosen]).to(faces.device)
        faces[index] = jpeg_artefacts(faces[index], quality, color_order)


@lru_cache(maxsize=4)
def _noise(values: int, device: torch.device) -> Tensor:
    """The noise bank, kept on the device."""
    return torch.from_numpy(noise_bank(values).copy()).to(device)


@lru_cache(maxsize=4)
def _shapes(device: torch.device) -> Tensor:
    """The shape bank ``(K, 1, H, W)``, kept on the device."""
    return torch.from_numpy(shape_bank()[:, None].copy()).to(device)


@lru_cache(maxsize=4)
def _resolutions(size: int, device: torch.device) -> Tensor:
    """The matrices of `resolution_matrices`, kept on the device."""
    return torch.from_numpy(resolution_matrices(size)).to(device)


def _per_face(values: NDArray[np.floating], like: Tensor) -> Tensor:
    """``(N, 1, 1, 1)`` beside the faces."""
    return _sent(values, like)[:, None, None, None]


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
_CHROMINANCE = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
"""T.81, table K.2; all other values are 99."""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""JFIF 1.02: rows are Y, Cb, Cr, columns red, green, blue."""


def quantization_tables(quality: Tensor) -> Tensor:
    """The luminance and chrominance tables at each quality ``(N,)`` from 1 to 100, ``(N, 2, 8, 8)``."""
    tables = _annex_k(quality.device)
    quality = quality.float()
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    return ((tables * percent[:, None, None, None] + 50) / 100).floor().clamp(1, 255)


def jpeg_artefacts(faces: Tensor, quality: Tensor, color_order: str) -> Tensor:
    """Compress faces as JPEG and decompress them, as libjpeg does to within rounding.

    Args:
        faces: ``(N, 3, S, S)`` float32, grey levels 0 to 255.
        quality: ``(N,)`` 1 to 100.
        color_order: ``bgr`` or ``rgb``.

    Returns:
        ``(N, 3, S, S)`` whole grey levels 0 to 255.
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
    tables = torch.full((2, 8, 8), 99.0)
    tables[0], tables[1, :4, :4] = torch.tensor(_LUMINANCE), torch.tensor(_CHROMINANCE)
    return tables.to(device)


@lru_cache(maxsize=4)
def _colors(color_order: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """To YCbCr, back, and the level shift of Y, ``(3, 1, 1)``."""
    matrix = torch.tensor(_TO_YCC, dtype=torch.float64)
    if color_order == "bgr":
        matrix = matrix.flip(1)
    shift = torch.tensor([128.0, 0.0, 0.0])[:, None, None]
    return matrix.float().to(device), torch.linalg.inv(matrix).float().to(device), shift.to(device)


def _doubled(planes: Tensor) -> Tensor:
    """Double both sides with weights 3/4 and 1/4, libjpeg's default for halved chroma."""
    return F.interpolate(planes, scale_factor=2.0, mode="bilinear", align_corners=False)
