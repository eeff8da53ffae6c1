"""Turns cached faces into batches that a network trains on."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfld_edge_runtime import Contract
from pfld_edge_train.augment import augment_pixels
from pfld_edge_train.augment_config import AugmentConfig
from pfld_edge_train.face_cache import FaceCache
from pfld_edge_train.geometry import random_frames, warp_faces, warp_landmarks

__all__ = ["Batch", "epoch_order", "training_batches", "validation_batches"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Faces as the network sees them, with their answers.

    Attributes:
        faces: ``(N, 3, S, S)`` float32, normalized as the contract says.
        landmarks: ``(N, P, 2)`` float32, fractions of the crop.
        weights: ``(N, P)`` float32, trust in each landmark, 0 to 1.
        attributes: ``(N, 6)`` bool, in the order of `pfld_edge_calib.WFLW_ATTRIBUTES`; all false where unknown.
    """

    faces: Tensor
    landmarks: Tensor
    weights: Tensor
    attributes: Tensor


def epoch_order(cache: FaceCache, seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle the training faces, each as often as its source says.

    The order depends on seed and epoch alone, so a resumed run sees what the uninterrupted one would have seen.
    """
    training = np.flatnonzero(~cache.held_out)
    order = np.repeat(training, cache.repeats[training])
    np.random.default_rng([seed, epoch]).shuffle(order)
    return order


def training_batches(
    cache: FaceCache,
    contract: Contract,
    augment: AugmentConfig,
    batch_size: int,
    seed: int,
    epoch: int,
    first_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield the augmented batches of one epoch; a last batch that is not full is left out.

    What a batch holds depends on seed, epoch and its number alone: a run can go on anywhere, and the parts of several
    processes are together the batch of a single one.

    Args:
        cache: The faces.
        contract: Gives crop and normalization.
        augment: Strengths.
        batch_size: Faces of a whole batch.
        seed: The run's.
        epoch: From 0.
        first_batch: Batches to leave out at the start.
        rank: Which part of each batch to give.
        world_size: How many parts there are.
    """
    order = epoch_order(cache, seed, epoch)
    for number in range(first_batch, len(order) // batch_size):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{epoch}:{number}".encode()))
        batch = _batch(cache, contract, order[number * batch_size : (number + 1) * batch_size], augment, generator)
        yield batch if world_size == 1 else _part(batch, rank, world_size)


def _part(batch: Batch, rank: int, world_size: int) -> Batch:
    return Batch(
        batch.faces[rank::world_size],
        batch.landmarks[rank::world_size],
        batch.weights[rank::world_size],
        batch.attributes[rank::world_size],
    )


def validation_batches(cache: FaceCache, contract: Contract, batch_size: int) -> Iterator[Batch]:
    """Yield the held-out faces, unaugmented, in order."""
    chosen = np.flatnonzero(cache.held_out)
    for start in range(0, len(chosen), batch_size):
        yield _batch(cache, contract, chosen[start : start + batch_size], None, None)


def _batch(
    cache: FaceCache,
    contract: Contract,
    chosen: NDArray[np.int64],
    augment: AugmentConfig | None,
    generator: torch.Generator | None,
) -> Batch:
    landmarks = torch.from_numpy(cache.landmarks[chosen])
    frames = random_frames(landmarks, contract.crop.margin, augment, generator)
    faces = warp_faces(cache.crops[chosen], frames, contract.input_size)
    mirror = torch.tensor(contract.landmarks.mirror)
    fractions = warp_landmarks(landmarks, frames, mirror)
    weights = torch.from_numpy(cache.weights[chosen])
    weights = torch.where(frames.flipped[:, None], weights[:, mirror], weights)
    if augment is not None:
        faces = augment_pixels(faces, augment, generator)
    mean, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (contract.mean, contract.scale))
    return Batch((faces - mean) / scale, fractions, weights, torch.from_numpy(cache.attributes[chosen]))
