"""Occlusions lie where they should, and what is under them keeps its landmarks."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfld_edge_runtime import Contract
from pfld_edge_train.augment import draw_plan, take_rows
from pfld_edge_train.augment.geometry import warp_picture
from pfld_edge_train.augment.occlusions import SHAPE_SIDE, Occlusions, shape_bank
from pfld_edge_train.config import AugmentConfig
from pfld_edge_train.face_cache import FaceCache

Strengths = Callable[..., AugmentConfig]
CONTRACT = Contract()
EYES, MOUTH, CHIN = range(60, 76), range(76, 96), range(12, 21)


def hidden(cache: FaceCache, config: AugmentConfig, layer: int, seed: int) -> np.ndarray:
    """How opaque the occlusion of one layer is at each landmark, ``(N, 98)``, 0 to 255."""
    plan = draw_plan(cache, np.arange(10), CONTRACT, config, np.random.default_rng(seed))
    assert plan.change is not None
    occlusions: Occlusions = plan.change.occlusions[layer]
    assert occlusions.shown.all()
    opacities = []
    for shape, affine, points in zip(occlusions.shape, occlusions.affines, plan.landmarks, strict=True):
        picture = warp_picture(shape_bank()[shape], affine, (112, 112))
        x, y = (points * 112).astype(int).clip(0, 111).T
        opacities.append(picture[y, x])
    return np.array(opacities)


@given(rotation=st.floats(0, 50), seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_masks_hide_the_lower_face_and_no_eye(cache: FaceCache, only: Strengths, rotation: float, seed: int) -> None:
    opacity = hidden(cache, only(mask=1, rotation=rotation, flip=0.5), 1, seed)
    assert (opacity[:, CHIN] > 128).mean() > 0.75
    assert (opacity[:, 85] > 128).mean() > 0.85  # the middle of the lower lip
    assert (opacity[:, EYES] < 128).mean() > 0.95


@given(rotation=st.floats(0, 50), seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_glasses_hide_the_eyes_and_no_mouth(cache: FaceCache, only: Strengths, rotation: float, seed: int) -> None:
    opacity = hidden(cache, only(glasses=1, rotation=rotation, flip=0.5), 2, seed)
    assert (opacity[:, EYES] > 128).mean() > 0.9
    assert (opacity[:, MOUTH] == 0).all()


def test_things_hide_some_landmarks_but_seldom_many(cache: FaceCache, only: Strengths) -> None:
    shares = np.concatenate([(hidden(cache, only(occlusion=1), 0, seed) > 128).mean(axis=1) for seed in range(30)])
    assert 0.05 < shares.mean() < 0.35
    assert np.quantile(shares, 0.95) < 0.7


def test_no_shape_touches_its_pictures_rim() -> None:
    bank = shape_bank()
    rim = np.ones((SHAPE_SIDE, SHAPE_SIDE), np.bool_)
    rim[1:-1, 1:-1] = False
    assert bank[:, rim].max() < 40
    assert (bank.reshape(len(bank), -1).max(axis=1) == 255).all()


@pytest.mark.parametrize("elsewhere", [80.0, np.nan])
def test_faces_without_eyes_do_not_raise(cache: FaceCache, elsewhere: float) -> None:
    points = np.full((4, 98, 2), elsewhere)
    points[:, 0], points[:, 1] = 70, 90
    known = np.isfinite(points).all(axis=2).astype(np.float32)
    faces = replace(cache, landmarks=points.astype(np.float32), weights=known)
    for seed in range(5):
        plan = draw_plan(faces, np.arange(4), CONTRACT, AugmentConfig(), np.random.default_rng(seed))
        assert plan.change is not None
        assert all(np.isfinite(occlusions.affines).all() for occlusions in plan.change.occlusions)


@pytest.mark.parametrize("rows", [slice(1, 3), np.array([2, 0])])
def test_rows_of_a_plan_are_those_faces(cache: FaceCache, rows: slice | np.ndarray) -> None:
    plan = draw_plan(cache, np.arange(4), CONTRACT, AugmentConfig(), np.random.default_rng(0))
    part = take_rows(plan, rows)
    assert part.change is not None
    assert plan.change is not None
    np.testing.assert_array_equal(part.rows, np.arange(4)[rows])
    np.testing.assert_array_equal(part.frames.centers, plan.frames.centers[rows])
    np.testing.assert_array_equal(part.change.occlusions[2].affines, plan.change.occlusions[2].affines[rows])
    np.testing.assert_array_equal(part.change.photometry.noise_start, plan.change.photometry.noise_start[rows])
