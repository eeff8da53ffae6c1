"""The plan of a batch: all random choices as numbers, equal on every device and for every number of processes."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime import Contract
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Int64Array
from pfld_edge_train.augment.geometry import FaceFrames, plain_frames, random_frames, warp_landmarks
from pfld_edge_train.augment.occlusions import Occlusions, draw_occlusions
from pfld_edge_train.augment.photometry import Photometry, draw_photometry
from pfld_edge_train.config import AugmentConfig
from pfld_edge_train.face_cache import FaceCache

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Change:
    """Changes of N faces after they are cropped.

    `smooth` ``(N,)`` says which are antialiased; layers of occlusions, the lowest first; then light and camera.
    """

    smooth: BoolArray
    occlusions: tuple[Occlusions, ...]
    photometry: Photometry


@dataclass(frozen=True, slots=True)
class AugmentPlan:
    """How N cached faces, `rows` of the cache, become a batch.

    `frames` are cropped, in pixels of the cached crops; `landmarks` ``(N, P, 2)`` are fractions of them. A `change` of
    None leaves the runtime's plain crop.
    """

    rows: Int64Array
    frames: FaceFrames
    landmarks: Float32Array
    change: Change | None


def draw_plan(
    cache: FaceCache,
    rows: Int64Array,
    contract: Contract,
    config: AugmentConfig | None,
    generator: np.random.Generator,
) -> AugmentPlan:
    """Plan the faces of some rows ``(N,)`` of the cache; without a configuration as plain crops."""
    landmarks, known = cache.landmarks[rows], cache.weights[rows] > 0
    margin, size = contract.crop.margin, contract.input_size
    mirror = np.array(contract.landmarks.mirror)
    if config is None:
        frames = plain_frames(landmarks, known, margin)
    else:
        frames = random_frames(landmarks, known, margin, config, generator)
    fractions = warp_landmarks(landmarks, frames, mirror)
    frames = frames.within(cache.windows[rows], cache.crops.shape[1])
    if config is None:
        return AugmentPlan(rows, frames, fractions, None)
    smooth = generator.random(len(rows)) < config.antialias
    occlusions = draw_occlusions(
        fractions, contract.landmarks.normalizing_points, rows, frames, size, config, generator
    )
    photometry = draw_photometry(len(rows), size, contract.color_order, config, generator)
    return AugmentPlan(rows, frames, fractions, Change(smooth, occlusions, photometry))


def take_rows(record: Record, rows: slice | NDArray[np.integer] | BoolArray) -> Record:
    """Choose faces from a dataclass of arrays with the faces on the first axis, nested dataclasses, tuples or None."""
    return cast(Record, _take(record, rows))


def _take(value: Any, rows: Any) -> Any:  # noqa: ANN401 - arrays and records of them
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(_take(getattr(value, item.name), rows) for item in fields(value)))
    if isinstance(value, tuple):
        return tuple(_take(item, rows) for item in value)
    return None if value is None else value[rows]
