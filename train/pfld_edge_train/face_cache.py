"""Training faces cut once, kept in a memory-mapped file."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from pfld_edge_calib.prepared import ROOM
from pfld_edge_runtime import Contract, CropRule
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.face_sources import FaceSource, open_source
from pfld_edge_train.pose_balance import balanced_repeats

__all__ = ["FaceCache", "open_cache", "split_groups"]


@dataclass(frozen=True, slots=True)
class FaceCache:
    """Faces in memory-mapped arrays.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8 BGR, S larger than the network's input by about `ROOM`.
        landmarks: ``(N, P, 2)`` float32 pixels of the cached crop.
        weights: ``(N, P)`` float32, trust in each landmark.
        attributes: ``(N, 6)`` bool, in the order of `pfld_edge_calib.WFLW_ATTRIBUTES`.
        repeats: ``(N,)`` int64, how often an epoch shows the face.
        held_out: ``(N,)`` bool, the validation split.
    """

    crops: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    weights: NDArray[np.float32]
    attributes: NDArray[np.bool_]
    repeats: NDArray[np.int64]
    held_out: NDArray[np.bool_]


def split_groups(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the validation faces by group, so that no person or photograph is on both sides.

    A group's side depends on its name and the seed alone: adding data moves no old face.

    Returns:
        ``(N,)`` bool, true where held out.
    """
    numbers = [zlib.crc32(f"{seed}:{group}".encode()) / 2**32 for group in groups]
    return np.array([number < share for number in numbers])


def open_cache(config: TrainConfig, folder: Path, contract: Contract) -> FaceCache:
    """Open the cache of a configuration's faces, building it where it is missing.

    Args:
        config: Names the data.
        folder: Where caches live; a cache's name is a hash of all that it depends on.
        contract: Gives the crop.

    Raises:
        FaceSetError: A source can't be read.
        TrainConfigError: A source has other points than the network, or was prepared for another crop.
    """
    wide = contract.replace(
        input_size=round(contract.input_size * ROOM),
        color_order="bgr",
        crop=CropRule(margin=contract.crop.margin * ROOM),
    )
    sources = [open_source(data, contract, wide) for data in config.data]
    known = [source.known() for source in sources]
    counts = [len(each.groups) for each in known]
    target = folder / f"faces-{_digest(sources, wide)}"
    if not (target / "landmarks.npy").exists():
        _build(sources, sum(counts), wide, target)
    groups = [group for each in known for group in each.groups]
    landmarks = np.load(target / "landmarks.npy")
    repeats = np.repeat([data.repeat for data in config.data], counts)
    balance = np.repeat([data.pose_balance for data in config.data], counts)
    return FaceCache(
        crops=np.load(target / "crops.npy", mmap_mode="r"),
        landmarks=landmarks,
        weights=np.concatenate([each.weights for each in known]),
        attributes=np.concatenate([each.attributes for each in known]),
        repeats=balanced_repeats(repeats, balance, landmarks, contract.landmarks.normalizing_points),
        held_out=split_groups(groups, config.validation, config.seed),
    )


def _digest(sources: Sequence[FaceSource], contract: Contract) -> str:
    summary = hashlib.sha256(json.dumps([contract.input_size, contract.crop.margin, contract.color_order]).encode())
    for source in sources:
        summary.update(source.fingerprint())
    return summary.hexdigest()[:16]


def _build(sources: Sequence[FaceSource], count: int, contract: Contract, target: Path) -> None:
    """Cut all faces; `landmarks.npy` is renamed into place last and marks a cache as whole."""
    target.mkdir(parents=True, exist_ok=True)
    size = contract.input_size
    crops = np.lib.format.open_memmap(target / "crops.npy", mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    landmarks = np.zeros((count, contract.landmarks.num_landmarks, 2), np.float32)
    done = 0
    terminal = Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task("cutting faces", total=count)
        for source in sources:
            for cut, points in source.cut():
                crops[done : done + len(cut)], landmarks[done : done + len(cut)] = cut, points
                done += len(cut)
                progress.advance(task, len(cut))
    crops.flush()
    partial = target / "landmarks.partial.npy"
    np.save(partial, landmarks)
    partial.replace(target / "landmarks.npy")
