"""Renders a plan with torch, the whole batch at once, on any device: without a loop over faces.

It computes what `on_cpu` computes face by face; tests compare the two. Which faces get a change is decided on the host,
so that nothing waits for the device. JPEG's artefacts are computed without a file: baseline JPEG (ITU-T T.81), BT.601
full-range colours as in JFIF, chroma halved, 8 x 8 DCT, the tables of Annex K scaled by quality as the Independent JPEG
Group's library does it. Entropy coding is lossless and left out.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pfld_edge_calib.datasets.prepared import Crops
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Int64Array
from pfld_edge_train.augment.geometry import supersampling, warp_pictures
from pfld_edge_train.augment.occlusions import Occlusions, shape_bank
from pfld_edge_train.augment.photometry import BANK_STD, Photometry, blur_kernels, luma, noise_bank, resolution_matrices
from pfld_edge_train.augment.plan import AugmentPlan, take_rows

Record = TypeVar("Record")


def render_on_device(crops: Crops, plan: AugmentPlan, size: int, color_order: str, device: torch.device) -> Tensor:
    """Crop and augment the N faces of a plan: ``(N, 3, size, size)`` float32 on the device, whole grey levels 0 to 255.

    Only the plan's rows of the cache ``(M, H, W, 3)`` are read and sent to the device. `color_order` is ``bgr`` or
    ``rgb``.
    """
    affines = plan.frames.affines(size)
    sources = _pictures(crops, plan.rows, device)
    faces = _levels(warp_pictures(sources, affines, size))
    change = plan.change
    if change is None:
        return faces
    factors = supersampling(affines, change.smooth)
    for factor in sorted(set(factors[factors > 1].tolist())):
        chosen = np.flatnonzero(factors == factor)
        index = torch.from_numpy(chosen).to(device)
        faces[index] = _levels(warp_pictures(sources[index], affines[chosen], size, factor))
    for layer in change.occlusions:
        _change(faces, layer.shown, layer, lambda under, layer: _occluded(under, layer, crops))
    _photograph(faces, change.photometry, color_order)
    return faces


def _pictures(crops: Crops, rows: Int64Array, device: torch.device) -> Tensor:
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


def _change(faces: Tensor, shown: BoolArray, record: Record, function: Callable[[Tensor, Record], Tensor]) -> None:
    """Replace the shown faces; the function gets them, and their rows of the record."""
    chosen = np.flatnonzero(shown)
    if len(chosen):
        index = torch.from_numpy(chosen).to(faces.device)
        faces[index] = _levels(function(faces[index], take_rows(record, chosen)))


def _per_face(values: NDArray[np.generic], like: Tensor) -> Tensor:
    """``(N,)`` or ``(N, C)`` numbers beside the faces: float32, ``(N, 1 or C, 1, 1)``."""
    flat = np.ascontiguousarray(values.reshape(len(values), -1), np.float32)
    return torch.from_numpy(flat).to(like.device)[:, :, None, None]


@lru_cache(maxsize=32)
def _kept(device: torch.device, make: Callable[..., NDArray[np.generic]], *arguments: object) -> Tensor:
    """A constant array, kept on the device."""
    return torch.from_numpy(make(*arguments).copy()).to(device)


def _occluded(under: Tensor, occlusions: Occlusions, crops: Crops) -> Tensor:
    """Lay one layer of occlusions over the faces that have one."""
    size, device = under.shape[-1], under.device
    shapes = _kept(device, shape_bank)[torch.from_numpy(occlusions.shape).to(device), None].float()
    opacity = warp_pictures(shapes, occlusions.affines, size) * (_per_face(occlusions.opacity, under) / 255)
    occlusion = _per_face(occlusions.color, under).expand(-1, -1, size, size).clone()
    textured = np.flatnonzero(occlusions.texture > 0)
    if len(textured):
        place = torch.from_numpy(textured).to(device)
        skin = warp_pictures(_pictures(crops, occlusions.donor[textured], device), occlusions.skin[textured], size)
        occlusion[place] += (skin - occlusion[place]) * _per_face(occlusions.texture[textured], under)
    return under + (occlusion - under) * opacity


def _photograph(faces: Tensor, photometry: Photometry, color_order: str) -> None:
    """Light and camera, in the order of `Photometry`, in place."""
    _change(faces, photometry.gamma != 1, photometry, lambda x, own: 255 * (x / 255) ** _per_face(own.gamma, x))
    faces *= _per_face(photometry.gain, faces)
    faces += _per_face(photometry.offset, faces)
    _levels(faces)
    _change(faces, (photometry.slopes != 0).max(axis=1), photometry, _lit)
    _change(faces, photometry.blur_kind > 0, photometry, _blurred)
    _change(faces, photometry.narrow > 0, photometry, _narrowed)
    _change(faces, photometry.noise > 0, photometry, _noisy)
    shares = _kept(faces.device, luma, color_order)[:, None, None]
    _change(faces, photometry.gray, photometry, lambda x, _: (x * shares).sum(dim=1, keepdim=True))
    _change(
        faces,
        photometry.jpeg > 0,
        photometry,
        lambda x, own: jpeg_artefacts(x, torch.from_numpy(own.jpeg).to(x.device), color_order),
    )


def _lit(faces: Tensor, photometry: Photometry) -> Tensor:
    line = torch.linspace(-1, 1, faces.shape[-1], device=faces.device)
    slopes = _per_face(photometry.slopes, faces)
    return faces * torch.exp(slopes[:, :1] * line + slopes[:, 1:] * line[:, None])


def _blurred(faces: Tensor, photometry: Photometry) -> Tensor:
    """Filter each face by its own kernel: every channel of every face is a group."""
    kernels = torch.from_numpy(blur_kernels(photometry, faces.shape[-1])[0]).to(faces.device)
    padded = F.pad(faces, (kernels.shape[-1] // 2,) * 4, mode="replicate")
    weights = kernels.repeat_interleave(3, dim=0)[:, None]
    return F.conv2d(padded.reshape(1, -1, *padded.shape[2:]), weights, groups=len(weights)).view_as(faces)


def _narrowed(faces: Tensor, photometry: Photometry) -> Tensor:
    """Low resolution: a matrix on either side of each face."""
    matrices = _kept(faces.device, resolution_matrices, faces.shape[-1])
    own = matrices[torch.from_numpy(photometry.narrow).to(faces.device)][:, None]
    return own @ faces @ own.mT


def _noisy(faces: Tensor, photometry: Photometry) -> Tensor:
    """Add the noise bank, which is laid out as rows of pixels with their channels."""
    size, values = faces.shape[-1], faces[0].numel()
    starts = torch.from_numpy(photometry.noise_start).to(faces.device)
    bank = _kept(faces.device, noise_bank, values)
    noise = bank[starts[:, None] + torch.arange(values, device=faces.device)].float() - 128
    strength = _per_face(photometry.noise / BANK_STD, faces)
    return faces + noise.view(-1, size, size, 3).permute(0, 3, 1, 2) * strength


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
    quality = quality.float()
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    tables = _kept(quality.device, _annex_k)
    return ((tables * percent[:, None, None, None] + 50) / 100).floor().clamp(1, 255)


def jpeg_artefacts(faces: Tensor, quality: Tensor, color_order: str) -> Tensor:
    """Compress ``(N, 3, S, S)`` faces as JPEG and decompress them, as libjpeg does to within rounding.

    Grey levels 0 to 255, whole ones in the result; `quality` ``(N,)`` is 1 to 100, `color_order` ``bgr`` or ``rgb``.
    """
    size = faces.shape[-1]
    to_ycc, to_colors = _kept(faces.device, _colors, color_order)
    # The DCT's level shift for Y; Cb and Cr are centred on 128 and shifted back by it.
    shift = _kept(faces.device, np.array, (128, 0, 0), np.float32)[:, None, None]
    full = -size % 16
    padded = F.pad(faces, (0, full, 0, full), mode="replicate") if full else faces
    planes = (torch.einsum("dc,nchw->ndhw", to_ycc, padded) - shift).round()
    tables = quantization_tables(quality)
    bright = _coded(planes[:, :1], tables[:, :1])
    hue = _coded(F.avg_pool2d(planes[:, 1:], 2).round(), tables[:, 1:])
    # Weights 3/4 and 1/4, libjpeg's default for halved chroma.
    doubled = F.interpolate(hue, scale_factor=2.0, mode="bilinear", align_corners=False)
    restored = torch.cat([bright, doubled], dim=1).clamp(-128, 127) + shift
    colors = torch.einsum("cd,ndhw->nchw", to_colors, restored)
    return colors[:, :, :size, :size].round().clamp(0, 255)


def _coded(planes: Tensor, tables: Tensor) -> Tensor:
    """Quantize the 8 x 8 DCT of ``(N, C, H, W)`` planes by ``(N, 1, 8, 8)`` tables; sides are multiples of 8."""
    count, channels, height, width = planes.shape
    transform = _kept(planes.device, _dct)
    blocks = planes.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    steps = tables[:, :, None, None]
    levels = ((transform @ blocks @ transform.T) / steps).round()
    restored = (transform.T @ (levels * steps) @ transform).transpose(3, 4)
    return restored.reshape(count, channels, height, width).round()


def _dct() -> Float32Array:
    """The orthonormal DCT-II of 8 values as a matrix (T.81, A.3.3)."""
    return np.asarray(cv2.dct(np.eye(8), flags=cv2.DCT_ROWS).T, np.float32)


def _annex_k() -> Float32Array:
    """Both tables, ``(2, 8, 8)``."""
    tables = np.full((2, 8, 8), 99, np.float32)
    tables[0], tables[1, :4, :4] = _LUMINANCE, _CHROMINANCE
    return tables


def _colors(color_order: str) -> Float32Array:
    """To YCbCr, and back, ``(2, 3, 3)``."""
    matrix = np.array(_TO_YCC)[:, :: 1 if color_order == "rgb" else -1]
    return np.stack([matrix, np.linalg.inv(matrix)]).astype(np.float32)
