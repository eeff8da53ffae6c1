"""All faces of a run: crops and labels, the validation split, and how often an epoch shows each face."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.units import Skip
from pfld_edge_runtime import Contract
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.face_sources import Crops, join_faces, read_source

LARGE_POSE_SHARE = 0.48
"""Distance of the outer eye corners as a share of the landmarks' box, below which a face counts as in large pose.

Half of all faces lie above 0.58, a twentieth of LFW's press photographs below 0.51.
"""

MOST_REPEATS = 16
"""Largest factor by which pose balance repeats a face."""


@dataclass(frozen=True, slots=True)
class FaceCache:
    """The N faces of a run.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8 BGR, S larger than the network's input by about
            `pfld_edge_calib.datasets.prepared.ROOM`.
        windows: ``(N, 3)`` int64, x, y and side of each crop's window in its photograph, in pixels.
        landmarks: ``(N, P, 2)`` float32, photograph pixels.
        weights: ``(N, P)`` float32, weight of each landmark.
        attributes: ``(N, 6)`` bool, in the order of `pfld_edge_calib.WFLW_ATTRIBUTES`.
        repeats: ``(N,)`` int64, how often an epoch shows the face; 0 without a labelled landmark.
        held_out: ``(N,)`` bool, the validation split; faces without a labelled landmark are not in it.
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


def open_cache(config: TrainConfig, folder: Path, contract: Contract, skip: Skip | None = None) -> FaceCache:
    """Open a configuration's faces; listed ones are cropped into `folder` where their crops are missing.

    Files that can't be read go to `skip`, and the others are trained on.

    Raises:
        FaceSetError: A source can't be read, or a part of it where there is no `skip`.
        TrainConfigError: A source has other points than the network, or was prepared for another crop.
    """
    sources = [read_source(data, contract, folder, skip) for data in config.data]
    counts = [len(source.groups) for source in sources]
    faces = sources[0] if len(sources) == 1 else join_faces(sources)
    labelled = faces.weights.any(axis=1)
    repeats = np.repeat([data.repeat for data in config.data], counts)
    balance = np.repeat([data.pose_balance for data in config.data], counts)
    points = contract.landmarks.normalizing_points
    return FaceCache(
        crops=faces.crops,
        windows=faces.windows,
        landmarks=faces.landmarks,
        weights=faces.weights,
        attributes=faces.attributes,
        repeats=balanced_repeats(repeats, balance, faces.landmarks, faces.weights, points) * labelled,
        held_out=split_groups(faces.groups, config.validation, config.seed) & labelled,
    )


def split_groups(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the validation faces by group, so that no person or photograph is on both sides.

    A group's side depends on its name and the seed alone: adding data moves no old face.

    Returns:
        ``(N,)`` bool, true where held out.
    """
    numbers = [zlib.crc32(f"{seed}:{group}".encode()) / 2**32 for group in groups]
    return np.array([number < share for number in numbers])


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

    Args:
        repeats: ``(N,)``, from the configuration.
        balance: ``(N,)``, 0 for faces that stay as they are.
        landmarks: ``(N, P, 2)`` in any unit.
        weights: ``(N, P)``, 0 where unlabelled.
        normalizing_points: Two indices of landmarks.

    Returns:
        ``(N,)`` int64, from ``repeats`` to ``MOST_REPEATS * repeats``.
    """
    ends, known = list(normalizing_points), weights > 0
    distance = np.linalg.norm(landmarks[:, ends[0]] - landmarks[:, ends[1]], axis=1)
    low = np.where(known[:, :, None], landmarks, np.inf).min(axis=1)
    high = np.where(known[:, :, None], landmarks, -np.inf).max(axis=1)
    share = distance / np.maximum((high - low).max(axis=1), 1e-6)
    share = np.where(known[:, ends].all(axis=1), share, LARGE_POSE_SHARE)
    factor = np.clip((LARGE_POSE_SHARE / np.maximum(share, 1e-6)) ** balance, 1, MOST_REPEATS)
    return np.asarray(np.round(repeats * factor), np.int64)
