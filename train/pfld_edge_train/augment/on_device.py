"""Carries out a plan with torch, the whole batch at once, on any device: a GPU is never starved by a loop over faces.

What each step computes is what `on_cpu` computes face by face; tests hold the two together. Which faces a step takes is
decided on the host, so that nothing waits for the device.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pfld_edge_train.augment.blur import blur_kernels
from pfld_edge_train.augment.covers import Covers
from pfld_edge_train.augment.jpeg import jpeg_artefacts
from pfld_edge_train.augment.looks import Looks, luma
from pfld_edge_train.augment.noise import BANK_STD, noise_bank
from pfld_edge_train.augment.plan import Plan
from pfld_edge_train.augment.resolution import resolution_matrices
from pfld_edge_train.augment.shapes import shape_bank
from pfld_edge_train.augment.warp import shrink_factors, warp_pictures

__all__ = ["render_on_device"]


def render_on_device(crops: NDArray[np.uint8], plan: Plan, size: int, color_order: str, device: torch.device) -> Tensor:
    """Cut and change the faces of a plan.

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
    factors = shrink_factors(affines, change.smooth)
    faces = _levels(warp_pictures(sources, affines, size))
    for factor in sorted(set(factors[factors > 1].tolist())):
        chosen, index = _chosen(factors == factor, device)
        faces[index] = _levels(warp_pictures(sources[index], affines[chosen], size, factor))
    for covers in change.covers:
        _cover(faces, crops, covers)
    _tone(faces, change.looks)
    _blur(faces, change.looks)
    _narrow(faces, change.looks)
    _add_noise(faces, change.looks)
    _finish(faces, change.looks, color_order)
    return faces


def _pictures(crops: NDArray[np.uint8], rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Send bytes, and make them ``(N, 3, H, W)`` floats there: a quarter of the traffic."""
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


def _cover(faces: Tensor, crops: NDArray[np.uint8], covers: Covers) -> None:
    """Lay one layer of shapes over those faces that have one."""
    chosen, index = _chosen(covers.shown, faces.device)
    if not len(chosen):
        return
    size = faces.shape[-1]
    bank = _shapes(faces.device)
    shapes = bank[torch.from_numpy(covers.shape[chosen]).to(faces.device)].float()
    opacity = warp_pictures(shapes, covers.affines[chosen], size) * (_per_face(covers.opacity[chosen], faces) / 255)
    cover = _sent(covers.color[chosen], faces)[:, :, None, None].expand(-1, -1, size, size).clone()
    textured, place = _chosen(covers.texture[chosen] > 0, faces.device)
    if len(textured):
        donors = chosen[textured]
        skin = warp_pictures(_pictures(crops, covers.donor[donors], faces.device), covers.skin[donors], size)
        cover[place] += (skin - cover[place]) * _per_face(covers.texture[donors], faces)
    under = faces[index]
    faces[index] = _levels(under + (cover - under) * opacity)


def _tone(faces: Tensor, looks: Looks) -> None:
    """Gamma, gain and offset of every channel, light from one side."""
    chosen, index = _chosen(looks.gamma != 1, faces.device)
    if len(chosen):
        exponent = _per_face(looks.gamma[chosen], faces)
        faces[index] = _levels(255 * (faces[index] / 255) ** exponent)
    faces *= _sent(looks.gain, faces)[:, :, None, None]
    faces += _sent(looks.offset, faces)[:, :, None, None]
    _levels(faces)
    chosen, index = _chosen((looks.slopes != 0).max(axis=1), faces.device)
    if len(chosen):
        line = torch.linspace(-1, 1, faces.shape[-1], device=faces.device)
        slopes = _sent(looks.slopes[chosen], faces)[:, :, None, None]
        field = torch.exp(slopes[:, :1] * line + slopes[:, 1:] * line[:, None])
        faces[index] = _levels(faces[index] * field)


def _blur(faces: Tensor, looks: Looks) -> None:
    """Filter each blurred face by its own kernel."""
    chosen, index = _chosen(looks.blur_kind > 0, faces.device)
    if not len(chosen):
        return
    size = faces.shape[-1]
    kernels = _sent(blur_kernels(looks, size)[0], faces)
    radius = kernels.shape[-1] // 2
    padded = F.pad(faces[index], (radius,) * 4, mode="replicate")
    # Every channel of every face is a group of its own.
    grouped = padded.reshape(1, -1, *padded.shape[2:])
    weights = kernels.repeat_interleave(3, dim=0)[:, None]
    filtered = F.conv2d(grouped, weights, groups=len(weights))
    faces[index] = _levels(filtered.reshape(-1, 3, size, size))


def _narrow(faces: Tensor, looks: Looks) -> None:
    """Shrink and grow: a matrix on either side of each face."""
    chosen, index = _chosen(looks.narrow > 0, faces.device)
    if len(chosen):
        sides = torch.from_numpy(looks.narrow[chosen]).to(faces.device)
        matrices = _resolutions(faces.shape[-1], faces.device)[sides][:, None]
        faces[index] = _levels(matrices @ faces[index] @ matrices.mT)


def _add_noise(faces: Tensor, looks: Looks) -> None:
    """Add the bank's noise, which lies there as rows of pixels with their channels."""
    chosen, index = _chosen(looks.noise > 0, faces.device)
    if not len(chosen):
        return
    size = faces.shape[-1]
    values = 3 * size * size
    starts = torch.from_numpy(looks.noise_start[chosen]).to(faces.device)
    noise = _noise(values, faces.device)[starts[:, None] + torch.arange(values, device=faces.device)].float() - 128
    strength = _per_face(looks.noise[chosen] / BANK_STD, faces)
    faces[index] = _levels(faces[index] + noise.view(-1, size, size, 3).permute(0, 3, 1, 2) * strength)


def _finish(faces: Tensor, looks: Looks, color_order: str) -> None:
    """Grey faces, then JPEG."""
    chosen, index = _chosen(looks.gray, faces.device)
    if len(chosen):
        shares = _sent(luma(color_order), faces)[:, None, None]
        faces[index] = _levels((faces[index] * shares).sum(dim=1, keepdim=True).repeat(1, 3, 1, 1))
    chosen, index = _chosen(looks.jpeg > 0, faces.device)
    if len(chosen):
        quality = torch.from_numpy(looks.jpeg[chosen]).to(faces.device)
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
