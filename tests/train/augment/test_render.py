"""Faces are rendered as their plan says: each step is what it claims to be."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from scipy import ndimage

from pfld_edge_runtime import Contract
from pfld_edge_train.augment import AugmentPlan, draw_plan, render
from pfld_edge_train.augment.photometry import blur_kernels, draw_photometry
from pfld_edge_train.config import AugmentConfig
from pfld_edge_train.face_cache import FaceCache

Strengths = Callable[..., AugmentConfig]
CONTRACT = Contract()
ROWS = np.arange(24) % 12

PARTS = {
    "rotation": 20.0,
    "shear": 0.2,
    "shift": 0.05,
    "scale": 0.1,
    "flip": 0.5,
    "antialias": 1.0,
    "light": 0.6,
    "darkness": 1.0,
    "gamma": 0.5,
    "temperature": 0.3,
    "color": 0.3,
    "gray": 1.0,
    "blur": 1.0,
    "defocus": 1.0,
    "low_resolution": 1.0,
    "noise": 20.0,
    "jpeg": 1.0,
    "occlusion": 1.0,
    "mask": 1.0,
    "glasses": 1.0,
}
"""Strength of each part when it is tried alone."""


def plan_of(
    cache: FaceCache, config: AugmentConfig | None, contract: Contract = CONTRACT, seed: int = 0
) -> AugmentPlan:
    return draw_plan(cache, ROWS, contract, config, np.random.default_rng(seed))


def test_every_part_is_tried() -> None:
    assert set(PARTS) == set(AugmentConfig.__dataclass_fields__)


def test_with_all_off_faces_are_plain(cache: FaceCache, only: Strengths) -> None:
    off, plain = (render(cache.crops, plan_of(cache, config), 112, "bgr") for config in (only(), None))
    np.testing.assert_array_equal(off, plain)


@pytest.mark.parametrize("part", [name for name in PARTS if name != "antialias"])
def test_every_part_changes_faces(cache: FaceCache, only: Strengths, part: str) -> None:
    plain, changed = (
        render(cache.crops, plan_of(cache, config), 112, "bgr").astype(int)
        for config in (None, only(**{part: PARTS[part]}))
    )
    assert np.abs(plain - changed).mean() > 0.5


def test_the_strength_of_one_part_leaves_the_others_chances_alone(cache: FaceCache) -> None:
    first = plan_of(cache, AugmentConfig()).change
    second = plan_of(cache, AugmentConfig(rotation=0, noise=0, occlusion=1, jpeg=0)).change
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.photometry.gamma, second.photometry.gamma)
    np.testing.assert_array_equal(first.photometry.gray, second.photometry.gray)
    np.testing.assert_array_equal(first.occlusions[1].shown, second.occlusions[1].shown)


def test_gray_is_opencvs_gray(cache: FaceCache, only: Strengths) -> None:
    plan = plan_of(cache, only(gray=1))
    gray = render(cache.crops, plan, 112, "bgr")
    plain = render(cache.crops, plan_of(cache, None), 112, "bgr")
    expected = np.stack([cv2.cvtColor(face, cv2.COLOR_BGR2GRAY) for face in plain])
    assert np.abs(gray - expected[:, :, :, None].astype(int)).max() <= 1


def test_grey_and_jpeg_follow_the_colour_order(cache: FaceCache, only: Strengths) -> None:
    plan = plan_of(cache, only(gray=0.5, jpeg=1))
    reversed_crops = np.ascontiguousarray(np.asarray(cache.crops)[..., ::-1])
    in_rgb = render(reversed_crops, plan, 112, "rgb")
    np.testing.assert_array_equal(in_rgb[..., ::-1], render(cache.crops, plan, 112, "bgr"))


def test_noise_has_its_strength(cache: FaceCache, only: Strengths) -> None:
    plan = plan_of(cache, only(noise=20))
    assert plan.change is not None
    noisy = render(cache.crops, plan, 112, "bgr").astype(float)
    plain = render(cache.crops, plan_of(cache, None), 112, "bgr").astype(float)
    inside = (plain > 80) & (plain < 175)
    for face, strength, where in zip(noisy - plain, plan.change.photometry.noise, inside, strict=True):
        if strength > 1:
            # Rounding to whole levels adds a twelfth to the variance.
            assert np.std(face[where]) == pytest.approx(np.hypot(strength, 12**-0.5), rel=0.06)


def test_kernels_sum_to_one_and_a_bell_is_scipys() -> None:
    photometry = draw_photometry(300, 112, "bgr", AugmentConfig(blur=0.5, defocus=0.5), np.random.default_rng(0))
    kernels, radii = blur_kernels(photometry, 112)
    np.testing.assert_allclose(kernels.sum(axis=(1, 2)), 1, rtol=1e-5)
    assert set(photometry.blur_kind) == {1, 2, 3}
    point = np.zeros(kernels.shape[1:])
    point[len(point) // 2, len(point) // 2] = 1
    bells = np.flatnonzero(photometry.blur_kind == 2)
    for bell in bells[:10]:
        expected = ndimage.gaussian_filter(point, photometry.blur_reach[bell], radius=int(radii[bell]))
        np.testing.assert_allclose(kernels[bell], expected, atol=1e-4)


def test_motion_moves_no_face() -> None:
    photometry = draw_photometry(200, 112, "bgr", AugmentConfig(blur=1), np.random.default_rng(1))
    for kernel in blur_kernels(photometry, 112)[0]:
        middle = (len(kernel) - 1) / 2
        np.testing.assert_allclose(ndimage.center_of_mass(kernel), (middle, middle), atol=1e-3)
