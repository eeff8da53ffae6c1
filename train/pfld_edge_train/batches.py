"""Batches of augmented faces, made in threads while the network computes."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from pfld_edge_runtime import Contract
from pfld_edge_runtime.arrays import Int64Array
from pfld_edge_train.augment import AugmentPlan, draw_plan, render_on_cpu, render_on_device, take_rows
from pfld_edge_train.config import HARD_VIEW, AugmentConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.face_cache import FaceCache

Item = TypeVar("Item")

_TRAINING, _VALIDATION = 1, 2
"""Last words of the generators' seeds, so that no two uses share a stream (numpy pads seeds with zeros)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Faces as the network sees them, ``(N, 3, S, S)`` float32, channels last, with their labels.

    `landmarks` ``(N, P, 2)`` are fractions of the crop, `weights` ``(N, P)`` lie in 0 to 1, `attributes` ``(N, 6)``
    bool are those of `pfld_edge_calib.datasets.wflw.WFLW_ATTRIBUTES`, all false where unknown.
    """

    faces: Tensor
    landmarks: Tensor
    weights: Tensor
    attributes: Tensor


def epoch_order(cache: FaceCache, seed: int, epoch: int) -> Int64Array:
    """Shuffle the training faces, each as often as `FaceCache.repeats` says; depends on seed and epoch alone."""
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
    device: torch.device | str = "cpu",
) -> "LazySequence[Batch]":
    """The augmented batches of one epoch, made when they are asked for; an incomplete last batch is left out.

    A batch depends on seed, epoch (from 0) and its number alone. Random numbers are drawn for the whole batch of
    `batch_size` faces, and each process takes every `world_size`-th face of it: W processes together see what one
    process sees, and a run resumes at any batch. Faces are rendered on `device`.

    Raises:
        TrainConfigError: The processes can't share a batch evenly.
    """
    if batch_size % world_size:
        raise TrainConfigError(f"batch_size {batch_size} does not divide among {world_size} processes; use a multiple")
    order = epoch_order(cache, seed, epoch)
    mine = slice(rank, None, world_size)

    def make(number: int) -> Batch:
        number += first_batch
        chosen = order[number * batch_size : (number + 1) * batch_size]
        generator = np.random.default_rng([seed, epoch, number, _TRAINING])
        plan = draw_plan(cache, chosen, contract, augment, generator)
        return _batch(cache, contract, take_rows(plan, mine), torch.device(device))

    return LazySequence(max(0, len(order) // batch_size - first_batch), make)


def validation_batches(
    cache: FaceCache,
    contract: Contract,
    batch_size: int,
    views: Sequence[int] = (0,),
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> "LazySequence[Batch]":
    """The validation faces in order, once for each view; a process takes every `world_size`-th batch.

    View 0 is the plain crop. Every other number is a hard view: the augmentation of `HARD_VIEW`, the same in every run
    and for every batch size. Plain faces are too easy to rank good checkpoints.
    """
    chosen = np.flatnonzero(cache.held_out)
    hard = HARD_VIEW if contract.landmarks.has_mirror else replace(HARD_VIEW, flip=0.0)
    plans = [
        draw_plan(cache, chosen, contract, hard if view else None, np.random.default_rng([view, 0, 0, _VALIDATION]))
        for view in views
    ]
    starts = range(rank * batch_size, len(chosen), world_size * batch_size)
    parts = [(plan, slice(start, start + batch_size)) for plan in plans for start in starts]

    def make(number: int) -> Batch:
        plan, rows = parts[number]
        return _batch(cache, contract, take_rows(plan, rows), torch.device(device))

    return LazySequence(len(parts), make)


class LazySequence(Generic[Item]):
    """Items 0 to ``length - 1`` of a function, made when they are asked for, from several threads too."""

    def __init__(self, length: int, make: Callable[[int], Item]) -> None:
        self._numbers, self._make = range(length), make

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Item:
        return self._make(self._numbers[number])

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, self._numbers)


def prefetched(items: LazySequence[Item], depth: int = 4, workers: int = 1) -> Iterator[Item]:
    """Yield the items in order, made by `workers` threads that run at most `depth` items ahead."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    waiting: deque[Future[Item]] = deque()
    try:
        for number in range(len(items)):
            waiting.append(pool.submit(items.__getitem__, number))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batch(cache: FaceCache, contract: Contract, plan: AugmentPlan, device: torch.device) -> Batch:
    """Render and normalize a plan's faces."""
    mirror = np.array(contract.landmarks.mirror)
    weights = cache.weights[plan.rows]
    weights = np.where(plan.frames.flipped[:, None], weights[:, mirror], weights)
    labels = (torch.from_numpy(values).to(device) for values in (plan.landmarks, weights, cache.attributes[plan.rows]))
    size, order = contract.input_size, contract.color_order
    if device.type == "cpu":
        pixels = render_on_cpu(cache.crops, plan, size, order)
        # As the runtime does, on whole rows: along an axis of three channels it would take as long as the rendering.
        factor = np.tile(1 / np.array(contract.scale, np.float32), size)
        rows = pixels.reshape(-1, len(factor)) * factor
        rows -= np.tile(np.array(contract.mean, np.float32), size) * factor
        return Batch(torch.from_numpy(rows.reshape(pixels.shape)).permute(0, 3, 1, 2), *labels)
    faces = render_on_device(cache.crops, plan, size, order, device)
    mean, scale = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (contract.mean, contract.scale))
    return Batch(((faces - mean) / scale).contiguous(memory_format=torch.channels_last), *labels)
