"""All faces of a run: crops and labels, the validation split, and how often an epoch shows each face.

A ``[[data]]`` table is a folder of prepared shards, read in place, or a list, which is prepared as raw shards once.
"""

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pfld_edge_calib import Face, FaceSetError, open_faces, read_points_csv
from pfld_edge_calib.datasets.points_csv import group_of
from pfld_edge_calib.datasets.prepared import (
    MANIFEST,
    UNREADABLE,
    Crops,
    PrepareSettings,
    Shard,
    ShardEntry,
    is_complete,
    open_prepared,
    prepare_faces,
    read_shard,
    set_identity,
)
from pfld_edge_calib.datasets.wflw import points_as_wflw_98
from pfld_edge_calib.face import Skip, refuse, skipping
from pfld_edge_calib.photo import PHOTO_SUFFIXES
from pfld_edge_runtime import IBUG_68, WFLW_98, Contract
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array, Int64Array, Uint8Array
from pfld_edge_train.config import DataConfig, TrainConfig
from pfld_edge_train.errors import TrainConfigError

LARGE_POSE_SHARE = 0.48
"""Distance of the outer eye corners as a share of the landmarks' box, below which a face counts as in large pose.

Half of all faces lie above 0.58, a twentieth of LFW's press photographs below 0.51.
"""

MOST_REPEATS = 16
"""Largest factor by which pose balance repeats a face."""


@dataclass(frozen=True, slots=True)
class FaceCache:
    """The N faces of a run.

    `crops` ``(N, S, S, 3)`` are uint8 BGR, larger than the network's input by about 1.5; `windows` ``(N, 3)`` x, y
    and side of each crop in its photograph; `landmarks` ``(N, P, 2)`` photograph pixels; `weights` ``(N, P)``;
    `attributes` ``(N, 6)`` bool those of `WFLW_ATTRIBUTES`. An epoch shows each face as often as `repeats` says;
    `held_out` is the validation split. Faces without a labelled landmark are in neither.
    """

    crops: Crops
    windows: Int64Array
    landmarks: Float32Array
    weights: Float32Array
    attributes: BoolArray
    repeats: Int64Array
    held_out: BoolArray

    @property
    def training_faces(self) -> int:
        """How many faces are trained on."""
        return int((~self.held_out & (self.repeats > 0)).sum())

    def measurable(self, normalizing_points: tuple[int, int]) -> BoolArray:
        """Which faces have an NME, ``(N,)``: both normalizing points are labelled and differ."""
        first, second = normalizing_points
        apart = (self.landmarks[:, first] != self.landmarks[:, second]).any(axis=1)
        return np.asarray(apart & (self.weights[:, first] > 0) & (self.weights[:, second] > 0))


def open_cache(
    config: TrainConfig, folder: Path, contract: Contract, skip: Skip = refuse, *, retry: bool = True
) -> FaceCache:
    """Open a configuration's faces; listed ones are cropped into `folder` where their crops are missing.

    `skip` takes the error of each file that can't be read, or member of a shard without landmarks, whose faces are
    left out or weigh nothing; where it is None the error is raised. Faces outside of their photographs are left out.
    With `retry` photographs that could not be read before are tried again.

    Raises:
        FaceSetError: A source can't be read, or `skip` takes no error of a part of it.
        TrainConfigError: A source has other points than the network, or was prepared for another crop.
    """
    sources = [_read_source(data, contract, folder, skip, retry) for data in config.data]
    counts = [len(source.groups) for source in sources]
    faces = sources[0] if len(sources) == 1 else _joined(sources)
    labelled = faces.weights.any(axis=1)
    repeats = np.repeat([data.repeat for data in config.data], counts)
    balance = np.repeat([data.pose_balance for data in config.data], counts)
    points = contract.landmarks.normalizing_points
    return FaceCache(
        *(faces.crops, faces.windows, faces.landmarks, faces.weights, faces.attributes),
        repeats=balanced_repeats(repeats, balance, faces.landmarks, faces.weights, points) * labelled,
        held_out=split_groups(faces.groups, config.validation, config.seed) & labelled,
    )


def split_groups(groups: Sequence[str], share: float, seed: int) -> BoolArray:
    """Choose the validation faces by group, so that no person or photograph is on both sides: ``(N,)``, true for them.

    A group's side depends on its name and the seed alone: adding data moves no old face.
    """
    keys = (f"{seed}:{group}".encode(errors="surrogatepass") for group in groups)
    return np.array([zlib.crc32(key) / 2**32 < share for key in keys])


def balanced_repeats(
    repeats: Int64Array,
    balance: Float64Array,
    landmarks: Float32Array,
    weights: Float32Array,
    normalizing_points: tuple[int, int],
) -> Int64Array:
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


def _joined(parts: Sequence[Shard]) -> Shard:
    arrays = ("landmarks", "windows", "weights", "attributes")
    return Shard(
        crops=JoinedCrops([part.crops for part in parts]),
        groups=tuple(chain.from_iterable(part.groups for part in parts)),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
    )


def _read_source(data: DataConfig, contract: Contract, folder: Path, skip: Skip, retry: bool) -> Shard:
    """Read the faces of one table; crops of listed faces are kept in `folder` between runs."""
    path = Path(data.path)
    if data.scheme and contract.landmarks != WFLW_98:
        raise TrainConfigError(
            f"{path}: scheme = {data.scheme!r} is for networks of {WFLW_98.name}, not of {contract.landmarks.name}"
        )
    settings = PrepareSettings(contract.input_size, contract.crop.margin, "raw")
    if (path / MANIFEST).is_file():
        prepared = _prepared_source(path, data, contract, settings, skip)
        return replace(prepared, groups=tuple(_prepared_group(name, data.group_by) for name in prepared.groups))
    images = Path(data.images) if data.images else None
    if path.suffix.lower() == ".csv":
        faces = read_points_csv(path, images, data.group_by)
    else:
        faces = _alike(open_faces(path, data.split, images, skip=skip).load(skip), skip)
        faces = [replace(face, group=group_of(face.group, data.group_by)) for face in faces]
    _check_points(path, len(faces[0].landmarks if faces[0].landmarks is not None else ()), data, contract)
    target = folder / f"faces-{set_identity(faces, path.parent, settings)[:16]}"
    if retry and (target / MANIFEST).is_file() and UNREADABLE in open_prepared(target).skipped:
        shutil.rmtree(target)
    if not (target / MANIFEST).is_file():
        _prepare(faces, path.parent, target, settings, skip)
    return _prepared_source(target, data, contract, settings, skip)


def _prepared_group(name: str, group_by: str) -> str:
    """Group of a prepared face: it was grouped by photograph, or by person already, whose name has no suffix."""
    return group_of(name, group_by) if Path(name).suffix.lower() in PHOTO_SUFFIXES else name


def _check_points(path: Path, points: int, data: DataConfig, contract: Contract) -> None:
    scheme = IBUG_68 if data.scheme else contract.landmarks
    if points == scheme.num_landmarks:
        return
    mapped = (points, scheme) == (IBUG_68.num_landmarks, WFLW_98)
    advice = f"scheme = {IBUG_68.name!r} in its [[data]] maps them" if mapped else "[landmarks] names another scheme"
    owner = f"scheme = {data.scheme!r}" if data.scheme else "the network"
    raise TrainConfigError(
        f"{path}: {points} points a face, {owner} has {scheme.num_landmarks} ({scheme.name}); {advice}"
    )


def _prepare(faces: Sequence[Face], root: Path, target: Path, settings: PrepareSettings, skip: Skip) -> None:
    """Crop faces into a prepared folder, with a bar on a terminal."""
    terminal = Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task("cutting faces", total=len(faces))
        prepare_faces(faces, "listed", root, target, settings, 1, partial(progress.advance, task), skip)


def _alike(faces: Sequence[Face], skip: Skip) -> list[Face]:
    """Leave out faces without landmarks, or with another number than the first, as members of shards may be."""
    counts = [0 if face.landmarks is None else len(face.landmarks) for face in faces]
    most = next(filter(None, counts), 0)
    for face, count in zip(faces, counts, strict=True):
        if count != most or not most:
            with skipping(skip if most else refuse):
                raise FaceSetError(f"{face.image}: {count or 'no'} landmarks, where others have {most}")
    return [face for face, count in zip(faces, counts, strict=True) if count == most]


def _prepared_source(
    folder: Path, data: DataConfig, contract: Contract, settings: PrepareSettings, skip: Skip
) -> Shard:
    manifest = open_prepared(folder)
    found = manifest.settings
    if manifest.source == "wflw test":
        raise TrainConfigError(f"{folder}: made of WFLW's test list, from which no run learns")
    if (found.size, found.contract.crop) != (settings.size, settings.contract.crop):
        raise TrainConfigError(
            f"{folder}: prepared with --input-size {found.input_size} --margin {found.margin:g}, the network "
            f"needs {settings.input_size} and {settings.margin:g}; prepare it anew"
        )
    _check_points(folder, manifest.points, data, contract)
    shards = (_shard_faces(folder, entry, settings.size, data, skip) for entry in manifest.shards)
    readable = [shard for shard in shards if shard is not None]
    if not readable:
        raise FaceSetError(f"{folder}: none of its {len(manifest.shards)} shards can be read")
    return _joined(readable)


def _shard_faces(folder: Path, entry: ShardEntry, size: int, data: DataConfig, skip: Skip) -> Shard | None:
    """Read the labels of a shard's faces, and map its pictures; None where `skip` takes its error.

    Faces of damaged pictures weigh nothing; only a file whose bytes have changed is searched for them.
    """
    shard = None
    with skipping(skip):
        shard = read_shard(folder / entry.file, size)
    if shard is None:
        return None
    landmarks, weights = shard.landmarks, shard.weights
    weights = weights if data.weighted else (weights > 0).astype(np.float32)
    if data.scheme:
        landmarks, weights = points_as_wflw_98(landmarks, weights)
    for row in () if is_complete(folder, entry) else range(len(weights)):
        readable = 0.0
        with skipping(skip):
            shard.crops[row]
            readable = 1.0
        weights[row] *= readable
    return replace(shard, landmarks=landmarks, weights=weights)


class JoinedCrops:
    """The crops of several shards or sources, one after the other; their crops have one size."""

    def __init__(self, parts: Sequence[Crops]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (int(self._starts[-1]), *parts[0].shape[1:])

    def __getitem__(self, rows: int | Int64Array, /) -> Uint8Array:
        if isinstance(rows, np.ndarray) and rows.ndim:
            return np.stack([self[row] for row in rows.tolist()])
        part = int(np.searchsorted(self._starts, rows, side="right")) - 1
        return self._parts[part][int(rows) - int(self._starts[part])]
