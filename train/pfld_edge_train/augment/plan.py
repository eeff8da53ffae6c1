"""All that chance decides about a batch, as numbers: the same for every device and every number of processes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime import Contract
from pfld_edge_train.augment.covers import Covers, draw_covers
from pfld_edge_train.augment.looks import Looks, draw_looks
from pfld_edge_train.augment.noise import BANK_STARTS
from pfld_edge_train.augment_config import AugmentConfig
from pfld_edge_train.geometry import FaceFrames, plain_frames, random_frames, warp_landmarks

__all__ = ["Change", "Plan", "draw_plan"]


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to N faces after they were cut.

    Attributes:
        smooth: ``(N,)`` bool: smoothed before it is shrunk.
        covers: Layers, the first lies lowest.
        looks: Light and camera.
    """

    smooth: NDArray[np.bool_]
    covers: tuple[Covers, ...]
    looks: Looks


@dataclass(frozen=True, slots=True)
class Plan:
    """How N cached faces become a batch.

    Attributes:
        rows: ``(N,)`` rows of the cache.
        frames: Where they are cut.
        landmarks: ``(N, P, 2)`` fractions of what is cut.
        change: What is done to them after that; None for the runtime's plain crop.
    """

    rows: NDArray[np.int64]
    frames: FaceFrames
    landmarks: NDArray[np.float32]
    change: Change | None


def draw_plan(
    rows: NDArray[np.int64],
    landmarks: NDArray[np.float32],
    known: NDArray[np.bool_],
    contract: Contract,
    config: AugmentConfig | None,
    generator: np.random.Generator,
) -> Plan:
    """Decide everything about N faces.

    Args:
        rows: ``(N,)`` rows of the cache.
        landmarks: ``(N, P, 2)`` of those, pixels of the cached crop.
        known: ``(N, P)``: which of them may be looked at.
        contract: Gives size, crop rule and landmark scheme.
        config: Strengths; None for the plain crop.
        generator: Source of chance.
    """
    margin, size = contract.crop.margin, contract.input_size
    mirror = np.array(contract.landmarks.mirror)
    if config is None:
        frames = plain_frames(landmarks, known, margin)
        return Plan(rows, frames, warp_landmarks(landmarks, frames, mirror), None)
    frames = random_frames(landmarks, known, margin, config, generator)
    fractions = warp_landmarks(landmarks, frames, mirror)
    smooth = generator.random(len(rows)) < config.antialias
    covers = draw_covers(fractions, contract.landmarks.normalizing_points, rows, frames, size, config, generator)
    looks = draw_looks(len(rows), size, contract.color_order, BANK_STARTS, config, generator)
    return Plan(rows, frames, fractions, Change(smooth, covers, looks))
