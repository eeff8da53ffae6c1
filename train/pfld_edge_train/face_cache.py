"""Training faces cut once, kept in a memory-mapped file."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from pfld_edge_calib import WFLW_ATTRIBUTES, Face, cut_faces, labelled_faces, read_points_csv
from pfld_edge_runtime import Contract, CropRule
from pfld_edge_train.config import DataConfig, TrainConfig
from pfld_edge_train.errors import TrainConfigError

__all__ = ["FaceCache", "open_cache", "split_groups"]

ROOM = 1.5
"""Side of a cached crop over that of the contract's crop: the square turned by 45 degrees (1.41) still fits."""


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


def split_groups(faces: Sequence[Face], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the validation faces by group, so that no person or photograph is on both sides.

    A group's side depends on its name and the seed alone: adding data moves no old face.

    Returns:
        ``(N,)`` bool, true where held out.
    """
    numbers = [zlib.crc32(f"{seed}:{face.group}".encode()) / 2**32 for face in faces]
    return np.array([number < share for number in numbers])


def open_cache(config: TrainConfig, folder: Path, contract: Contract) -> FaceCache:
    """Open the cache of a configuration's faces, building it where it is missing.

    Args:
        config: Names the data.
        folder: Where caches live; a cache's name is a hash of all that it depends on.
        contract: Gives the crop.

    Raises:
        FaceSetError: A source can't be read.
        TrainConfigError: A source has another number of points than the contract, or no face.
    """
    sources = [_faces_of(data, contract) for data in config.data]
    faces = [face for source in sources for face in source]
    repeats = np.concatenate(
        [np.full(len(source), data.repeat) for source, data in zip(sources, config.data, strict=True)]
    )
    wide = contract.replace(
        input_size=round(contract.input_size * ROOM * 0.95), crop=CropRule(margin=contract.crop.margin * ROOM)
    )
    target = folder / f"faces-{_digest(faces, wide)}"
    if not (target / "landmarks.npy").exists():
        _build(faces, wide, target)
    return FaceCache(
        crops=np.load(target / "crops.npy", mmap_mode="r"),
        landmarks=np.load(target / "landmarks.npy"),
        weights=np.concatenate([_weights(*pair) for pair in zip(sources, config.data, strict=True)]),
        attributes=np.array([[name in face.attributes for name in WFLW_ATTRIBUTES] for face in faces]),
        repeats=repeats,
        held_out=split_groups(faces, config.validation, config.seed),
    )


def _faces_of(data: DataConfig, contract: Contract) -> list[Face]:
    path, images = Path(data.path), Path(data.images) if data.images else None
    if path.suffix.lower() == ".csv":
        faces = read_points_csv(path, images, data.group_by)
    else:
        faces = labelled_faces(path, data.split)
    points = len(faces[0].landmarks) if faces[0].landmarks is not None else 0
    if points != contract.landmarks.num_landmarks:
        raise TrainConfigError(
            f"{path}: {points} points a face, the network has {contract.landmarks.num_landmarks} "
            f"({contract.landmarks.name}); [landmarks] names another scheme"
        )
    return faces


def _weights(faces: Sequence[Face], data: DataConfig) -> NDArray[np.float32]:
    """Trust in each landmark, ``(N, P)``: the face's own, times each point's where the source knows it."""
    rows = []
    for face in faces:
        points = np.ones(len(face.landmarks if face.landmarks is not None else ()), np.float32)
        if face.point_weights is not None:
            points = face.point_weights
        rows.append(points * (face.weight if data.weighted else 1.0))
    return np.array(rows, np.float32)


def _digest(faces: Sequence[Face], contract: Contract) -> str:
    summary = hashlib.sha256(json.dumps([contract.input_size, contract.crop.margin, contract.color_order]).encode())
    for face in faces:
        summary.update(str(face.image).encode())
        summary.update(face.bbox_xyxy.tobytes())
        if face.landmarks is not None:
            summary.update(face.landmarks.tobytes())
    return summary.hexdigest()[:16]


def _build(faces: Sequence[Face], contract: Contract, target: Path) -> None:
    """Cut all faces; `landmarks.npy` is renamed into place last and marks a cache as whole."""
    target.mkdir(parents=True, exist_ok=True)
    size = contract.input_size
    shape = (len(faces), size, size, 3)
    crops = np.lib.format.open_memmap(target / "crops.npy", mode="w+", dtype=np.uint8, shape=shape)
    landmarks = np.zeros((len(faces), contract.landmarks.num_landmarks, 2), np.float32)
    done = 0
    batches = cut_faces(faces, contract, batch_size=64)
    for batch in track(batches, description="cutting faces", total=-(-len(faces) // 64)):
        count = len(batch.faces)
        crops[done : done + count] = batch.crops
        known = np.stack([face.landmarks for face in batch.faces if face.landmarks is not None])
        landmarks[done : done + count] = batch.windows.to_crop(known) * size
        done += count
    crops.flush()
    partial = target / "landmarks.partial.npy"
    np.save(partial, landmarks)
    partial.replace(target / "landmarks.npy")
