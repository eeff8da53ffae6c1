"""All faces of a run: crops and labels, the validation split, and how often an epoch shows each face.

A ``[[data]]`` table is a list, cropped from photographs once, or a folder of prepared shards, read in place.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from pfld_edge_calib import WFLW_ATTRIBUTES, Face, FaceSetError, as_wflw_98, cut_faces, open_faces, read_points_csv
from pfld_edge_calib.datasets.point_maps import points_as_wflw_98
from pfld_edge_calib.datasets.prepared import (
    MANIFEST,
    ROOM,
    ShardEntry,
    decoded_picture,
    is_complete,
    open_prepared,
    read_shard,
)
from pfld_edge_calib.face import Skip, skipping
from pfld_edge_calib.photo import UnusableFaces
from pfld_edge_runtime import IBUG_68, WFLW_98, Contract, CropRule, crop_windows
from pfld_edge_train.config import DataConfig, TrainConfig
from pfld_edge_train.errors import TrainConfigError

LARGE_POSE_SHARE = 0.48
"""Distance of the outer eye corners as a share of the landmarks' box, below which a face counts as in large pose.

Half of all faces lie above 0.58, a twentieth of LFW's press photographs below 0.51.
"""

MOST_REPEATS = 16
"""Largest factor by which pose balance repeats a face."""

_BATCH = 64
"""Faces that are cropped at once."""


class Crops(Protocol):
    """``(N, S, S, 3)`` uint8 BGR faces: an array, or an object that reads them when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, S, S, 3)``."""
        ...

    def __getitem__(self, rows: int | NDArray[np.int64], /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, slots=True)
class FaceCache:
    """The N faces of a run.

    `crops` ``(N, S, S, 3)`` are uint8 BGR, larger than the network's input by about `ROOM`; `windows` ``(N, 3)`` x, y
    and side of each crop in its photograph; `landmarks` ``(N, P, 2)`` photograph pixels; `weights` ``(N, P)``;
    `attributes` ``(N, 6)`` bool those of `WFLW_ATTRIBUTES`. An epoch shows each face as often as `repeats` says;
    `held_out` is the validation split. Faces without a labelled landmark are in neither.
    """

    crops: Crops
    windows: NDArray[np.int64]
    landmarks: NDArray[np.float32]
    weights: NDArray[np.float32]
    attributes: NDArray[np.bool_]
    repeats: NDArray[np.int64]
    held_out: NDArray[np.bool_]

    @property
    def training_faces(self) -> int:
        """How many faces are trained on."""
        return int((~self.held_out & (self.repeats > 0)).sum())

    def measurable(self, normalizing_points: tuple[int, int]) -> NDArray[np.bool_]:
        """Which faces have an NME, ``(N,)``: both normalizing points are labelled and differ."""
        first, second = normalizing_points
        apart = (self.landmarks[:, first] != self.landmarks[:, second]).any(axis=1)
        return np.asarray(apart & (self.weights[:, first] > 0) & (self.weights[:, second] > 0))


class _Source(NamedTuple):
    """The faces of one source or shard, as in `FaceCache`; those of one group share a person or a photograph."""

    crops: Crops
    windows: NDArray[np.int64]
    landmarks: NDArray[np.float32]
    weights: NDArray[np.float32]
    attributes: NDArray[np.bool_]
    groups: tuple[str, ...]


def open_cache(config: TrainConfig, folder: Path, contract: Contract, skip: Skip | None = None) -> FaceCache:
    """Open a configuration's faces; listed ones are cropped into `folder` where their crops are missing.

    `skip` takes the error of each file that can't be read, or member of a shard without landmarks, whose faces are
    left out or weigh nothing; where it is None the error is raised.

    Raises:
        FaceSetError: A source can't be read, or a part of it where there is no `skip`.
        TrainConfigError: A source has other points than the network, or was prepared for another crop.
    """
    sources = [_read_source(data, contract, folder, skip) for data in config.data]
    counts = [len(source.groups) for source in sources]
    faces = sources[0] if len(sources) == 1 else _joined(sources)
    labelled = faces.weights.any(axis=1)
    repeats = np.repeat([data.repeat for data in config.data], counts)
    balance = np.repeat([data.pose_balance for data in config.data], counts)
    points = contract.landmarks.normalizing_points
    return FaceCache(
        *faces[:5],
        repeats=balanced_repeats(repeats, balance, faces.landmarks, faces.weights, points) * labelled,
        held_out=split_groups(faces.groups, config.validation, config.seed) & labelled,
    )


def split_groups(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the validation faces by group, so that no person or photograph is on both sides: ``(N,)``, true for them.

    A group's side depends on its name and the seed alone: adding data moves no old face.
    """
    return np.array([zlib.crc32(f"{seed}:{group}".encode()) / 2**32 < share for group in groups])


def balanced_repeats(
    repeats: NDArray[np.int64],
    balance: NDArray[np.float64],
    landmarks: NDArray[np.float32],
    weights: NDArray[np.float32],
    normalizing_points: tuple[int, int],
) -> NDArray[np.int64]:
    """Repeat each face ``(LARGE_POSE_SHARE / share) ** balance`` times as often, at least as often as before.

    The share is the distance of the normalizing points (the outer eye corners) over the longer side of the labelled
    landmarks' box: some 0.6 for a frontal face, towards 0 in profile. Faces without both points stay as they are.
    Landmarks ``(N, P, 2)`` in any unit, weights ``(N, P)``, 0 where unlabelled; ``MOST_REPEATS * repeats`` at most.
    """
    ends, known = list(normalizing_points), weights > 0
    distance = np.linalg.norm(landmarks[:, ends[0]] - landmarks[:, ends[1]], axis=1)
    low = np.where(known[:, :, None], landmarks, np.inf).min(axis=1)
    high = np.where(known[:, :, None], landmarks, -np.inf).max(axis=1)
    share = distance / np.maximum((high - low).max(axis=1), 1e-6)
    share = np.where(known[:, ends].all(axis=1), share, LARGE_POSE_SHARE)
    factor = np.clip((LARGE_POSE_SHARE / np.maximum(share, 1e-6)) ** balance, 1, MOST_REPEATS)
    return np.asarray(np.round(repeats * factor), np.int64)


def _joined(parts: Sequence[_Source]) -> _Source:
    crops, windows, landmarks, weights, attributes, groups = zip(*parts, strict=True)
    return _Source(
        JoinedCrops(crops),
        np.concatenate(windows),
        np.concatenate(landmarks),
        np.concatenate(weights),
        np.concatenate(attributes),
        tuple(chain.from_iterable(groups)),
    )


def _read_source(data: DataConfig, contract: Contract, folder: Path, skip: Skip | None) -> _Source:
    """Read the faces of one table; crops of listed faces are kept in `folder` between runs."""
    path = Path(data.path)
    # Crops are larger than the network's by `ROOM`, in BGR.
    wide = contract.replace(
        input_size=round(contract.input_size * ROOM),
        color_order="bgr",
        crop=CropRule(margin=contract.crop.margin * ROOM),
    )
    if data.scheme and contract.landmarks != WFLW_98:
        raise TrainConfigError(
            f"{path}: scheme = {data.scheme!r} is for networks of {WFLW_98.name}, not of {contract.landmarks.name}"
        )
    if (path / MANIFEST).is_file():
        source = _prepared_source(data, wide, skip)
        _check_points(path, source.weights.shape[1], contract)
        return source
    if path.suffix.lower() == ".csv":
        faces = read_points_csv(path, Path(data.images) if data.images else None, data.group_by)
    else:
        faces = _alike(open_faces(path, data.split, skip=skip).load(skip), skip)
    faces = as_wflw_98(faces) if data.scheme else faces
    _check_points(path, len(faces[0].landmarks if faces[0].landmarks is not None else ()), contract)
    return _listed_source(faces, data, wide, folder, skip)


def _check_points(path: Path, points: int, contract: Contract) -> None:
    scheme = contract.landmarks
    if points == scheme.num_landmarks:
        return
    mapped = (points, scheme) == (IBUG_68.num_landmarks, WFLW_98)
    advice = f"scheme = {IBUG_68.name!r} in its [[data]] maps them" if mapped else "[landmarks] names another scheme"
    raise TrainConfigError(
        f"{path}: {points} points a face, the network has {scheme.num_landmarks} ({scheme.name}); {advice}"
    )


def _alike(faces: Sequence[Face], skip: Skip | None) -> list[Face]:
    """Leave out faces without landmarks, or with another number than the first, as members of shards may be."""
    counts = [0 if face.landmarks is None else len(face.landmarks) for face in faces]
    most = next(filter(None, counts), 0)
    for face, count in zip(faces, counts, strict=True):
        if count != most or not most:
            with skipping(skip if most else None):
                raise FaceSetError(f"{face.image}: {count or 'no'} landmarks, where others have {most}")
    return [face for face, count in zip(faces, counts, strict=True) if count == most]


def _listed_source(faces: Sequence[Face], data: DataConfig, wide: Contract, folder: Path, skip: Skip | None) -> _Source:
    landmarks = np.stack([face.landmarks for face in faces if face.landmarks is not None])
    weights = np.ones(landmarks.shape[:2], np.float32)
    for row, face in zip(weights, faces, strict=True):
        row *= face.weight if face.point_weights is None else face.weight * face.point_weights
    crops, windows = _cut_once(faces, wide, folder, skip)
    weights[windows[:, 2] == 0] = 0
    return _Source(
        crops=crops,
        windows=windows,
        landmarks=landmarks,
        weights=weights if data.weighted else (weights > 0).astype(np.float32),
        attributes=np.array([[name in face.attributes for name in WFLW_ATTRIBUTES] for face in faces]),
        groups=tuple(face.group for face in faces),
    )


def _cut_once(
    faces: Sequence[Face], wide: Contract, folder: Path, skip: Skip | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Crop faces with the runtime's crop into a folder that is named by a hash of all that the crops depend on.

    ``windows.npy`` is renamed into place last and marks the folder as complete. The window of a photograph that can't
    be read has the side 0; the next run tries it again.
    """
    digest = hashlib.sha256(json.dumps([wide.input_size, wide.crop.margin, wide.color_order]).encode())
    for face in faces:
        digest.update(str(face.image).encode() + face.bbox_xyxy.tobytes())
    target = folder / f"faces-{digest.hexdigest()[:16]}"
    done = (target / "windows.npy").exists()
    windows = np.load(target / "windows.npy") if done else np.zeros((len(faces), 3), np.int64)
    missing = np.flatnonzero(windows[:, 2] == 0)
    if len(missing):
        target.mkdir(parents=True, exist_ok=True)
        shape = (len(faces), wide.input_size, wide.input_size, 3)
        mode: Literal["r+", "w+"] = "r+" if done else "w+"
        crops = np.lib.format.open_memmap(target / "crops.npy", mode=mode, dtype=np.uint8, shape=shape)
        left, unusable = [faces[row] for row in missing.tolist()], UnusableFaces(skip)
        terminal = Console(stderr=True)
        batches = track(
            cut_faces(left, wide, batch_size=_BATCH, unusable=unusable),
            "cutting faces",
            total=-(-len(left) // _BATCH),
            console=terminal,
            transient=True,
            disable=not terminal.is_terminal,
        )
        for batch in batches:
            rows = missing[list(batch.rows)]
            crops[rows], windows[rows, :2], windows[rows, 2] = batch.crops, batch.windows.corners, batch.windows.sizes
        # The crop of a face outside of its photograph is black, as the file was when it was made.
        for row in unusable.outside:
            window = crop_windows(left[row].bbox_xyxy[None], wide.crop.margin)
            windows[missing[row]] = (*window.corners[0], window.sizes[0])
        crops.flush()
        np.save(target / "windows.partial.npy", windows)
        (target / "windows.partial.npy").replace(target / "windows.npy")
    # As a plain array: rows of a memory map are slow to make.
    return np.load(target / "crops.npy", mmap_mode="r").view(np.ndarray), windows


def _prepared_source(data: DataConfig, wide: Contract, skip: Skip | None) -> _Source:
    folder = Path(data.path)
    manifest = open_prepared(folder)
    settings = manifest.settings
    if manifest.source == "wflw test":
        raise TrainConfigError(f"{folder}: made of WFLW's test list, from which no run learns")
    if (settings.size, settings.contract.crop) != (wide.input_size, wide.crop):
        raise TrainConfigError(
            f"{folder}: prepared with --input-size {settings.input_size} --margin {settings.margin:g}, the network "
            f"needs {round(wide.input_size / ROOM)} and {wide.crop.margin / ROOM:g}; prepare it anew"
        )
    shards = (_shard_faces(folder, entry, wide.input_size, data, skip) for entry in manifest.shards)
    readable = [shard for shard in shards if shard is not None]
    if not readable:
        raise FaceSetError(f"{folder}: none of its {len(manifest.shards)} shards can be read")
    return _joined(readable)


def _shard_faces(folder: Path, entry: ShardEntry, size: int, data: DataConfig, skip: Skip | None) -> _Source | None:
    """Read the labels of a shard's faces, and map its pictures; None where `skip` takes its error.

    Faces of damaged pictures weigh nothing; only a file whose bytes have changed is searched for them.
    """
    path = folder / entry.file
    shard = None
    with skipping(skip):
        shard = read_shard(path, size, pictures=False)
    if shard is None:
        return None
    weights = shard.weights if data.weighted else (shard.weights > 0).astype(np.float32)
    landmarks, crops = shard.photo_landmarks, ShardCrops(path, size)
    if data.scheme:
        landmarks, weights = points_as_wflw_98(landmarks, weights)
    for row in () if is_complete(folder, entry) else range(len(weights)):
        readable = 0.0
        with skipping(skip):
            crops[row]
            readable = 1.0
        weights[row] *= readable
    return _Source(crops, shard.windows, landmarks, weights, shard.attributes, shard.groups)


class ShardCrops:
    """The crops of a prepared shard, decoded when asked for, also from several threads; FaceSetError if damaged."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._pictures = path, _mapped_array(path, "pictures")
        self._ends = np.load(path, allow_pickle=False)["picture_ends"]
        self.shape = (len(self._ends), size, size, 3)

    def __getitem__(self, row: int | NDArray[np.int64], /) -> NDArray[np.uint8]:
        place = int(row)
        data = self._pictures[self._ends[place - 1] if place else 0 : self._ends[place]]
        try:
            return decoded_picture(data, self.shape[1])
        except ValueError as error:
            raise FaceSetError(f"{self._path}: picture {place} is damaged; run `pfld-edge prepare` again") from error


class JoinedCrops:
    """The crops of several shards or sources, one after the other; their crops have one size."""

    def __init__(self, parts: Sequence[Crops]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (int(self._starts[-1]), *parts[0].shape[1:])

    def __getitem__(self, rows: int | NDArray[np.int64], /) -> NDArray[np.uint8]:
        if isinstance(rows, np.ndarray) and rows.ndim:
            return np.stack([self[row] for row in rows.tolist()])
        part = int(np.searchsorted(self._starts, rows, side="right")) - 1
        return self._parts[part][int(rows) - int(self._starts[part])]


def _mapped_array(path: Path, name: str) -> NDArray[np.uint8]:
    """Map one array of an uncompressed ``.npz`` file into memory."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"{name}.npy").header_offset
    with path.open("rb") as file:
        file.seek(start + 26)  # of the local header: lengths of name and extra field, 2 bytes each (APPNOTE.TXT 4.3.7)
        lengths = file.read(4)
        file.seek(start + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"))
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, "r", file.tell(), shape).view(np.ndarray) if shape[0] else np.empty(0, np.uint8)
