"""OpenCV face by face and torch by the batch carry out the same plan, and each step is what it claims to be."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from pfld_edge_runtime import Contract
from pfld_edge_train.augment import AugmentPlan, draw_plan, render_on_cpu, render_on_device
from pfld_edge_train.augment.photometry import blur_kernels, draw_photometry, resolution_matrices
from pfld_edge_train.config import AugmentConfig
from pfld_edge_train.face_cache import FaceCache

Strengths = Callable[..., AugmentConfig]
CONTRACT = Contract()
ROWS = np.arange(24) % 12

# Strength of each part when it is tried alone, and how far the two ways may differ: in the mean, and at one pixel.
PARTS = {
    "rotation": (20.0, 0.02, 1),
    "shear": (0.2, 0.02, 1),
    "shift": (0.05, 0.02, 1),
    "scale": (0.1, 0.02, 1),
    "flip": (0.5, 0.02, 1),
    "antialias": (1.0, 0.1, 1),
    "light": (0.6, 0.05, 3),
    "darkness": (1.0, 0.05, 2),
    "gamma": (0.5, 0.05, 3),
    "temperature": (0.3, 0.05, 2),
    "color": (0.3, 0.05, 2),
    "gray": (1.0, 0.05, 1),
    "blur": (1.0, 0.05, 1),
    "defocus": (1.0, 0.05, 1),
    "low_resolution": (1.0, 0.4, 2),
    "noise": (20.0, 0.05, 1),
    "jpeg": (1.0, 1.0, 40),
    "occlusion": (1.0, 0.1, 3),
    "mask": (1.0, 0.1, 3),
    "glasses": (1.0, 0.1, 3),
}


def plan_of(
    cache: FaceCache, config: AugmentConfig | None, contract: Contract = CONTRACT, seed: int = 0
) -> AugmentPlan:
    return draw_plan(cache, ROWS, contract, config, np.random.default_rng(seed))


def both(
    cache: FaceCache, config: AugmentConfig | None, contract: Contract = CONTRACT
) -> tuple[np.ndarray, np.ndarray]:
    plan, size = plan_of(cache, config, contract), contract.input_size
    bytes_ = render_on_cpu(cache.crops, plan, size, contract.color_order)
    levels = render_on_device(cache.crops, plan, size, contract.color_order, torch.device("cpu"))
    assert levels.min() >= 0
    assert levels.max() <= 255
    torch.testing.assert_close(levels, levels.round())
    return bytes_.astype(int), levels.permute(0, 2, 3, 1).numpy().astype(int)


def test_every_part_is_tried() -> None:
    assert set(PARTS) == set(AugmentConfig.__dataclass_fields__)


@pytest.mark.parametrize("size", [112, 48])
@pytest.mark.parametrize("part", PARTS)
def test_both_ways_agree(cache: FaceCache, only: Strengths, part: str, size: int) -> None:
    strength, mean, most = PARTS[part]
    first, second = both(cache, only(**{part: strength}), Contract(input_size=size))
    difference = np.abs(first - second)
    assert difference.mean() <= mean
    assert difference.max() <= most


def test_both_ways_agree_in_all_parts_together_and_in_rgb(cache: FaceCache) -> None:
    first, second = both(cache, AugmentConfig(), Contract(color_order="rgb"))
    assert np.abs(first - second).mean() < 0.5


def test_with_all_off_faces_are_plain(cache: FaceCache, only: Strengths) -> None:
    for off, plain in zip(both(cache, only()), both(cache, None), strict=True):
        np.testing.assert_array_equal(off, plain)


@pytest.mark.parametrize("part", [name for name in PARTS if name != "antialias"])
def test_every_part_changes_faces(cache: FaceCache, only: Strengths, part: str) -> None:
    plain, changed = (
        render_on_cpu(cache.crops, plan_of(cache, config), 112, "bgr").astype(int)
        for config in (None, only(**{part: PARTS[part][0]}))
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
    gray = render_on_cpu(cache.crops, plan, 112, "bgr")
    plain = render_on_cpu(cache.crops, plan_of(cache, None), 112, "bgr")
    expected = np.stack([cv2.cvtColor(face, cv2.COLOR_BGR2GRAY) for face in plain])
    assert np.abs(gray - expected[:, :, :, None].astype(int)).max() <= 1


def test_noise_has_its_strength(cache: FaceCache, only: Strengths) -> None:
    plan = plan_of(cache, only(noise=20))
    assert plan.change is not None
    noisy = render_on_cpu(cache.crops, plan, 112, "bgr").astype(float)
    plain = render_on_cpu(cache.crops, plan_of(cache, None), 112, "bgr").astype(float)
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


@pytest.mark.parametrize("narrow", [1, 20, 37, 56, 80, 112])
def test_a_resolution_matrix_is_two_resizes(narrow: int) -> None:
    line = np.random.default_rng(0).uniform(0, 255, (112, 112)).astype(np.float32)
    small = cv2.resize(line, (narrow, narrow), interpolation=cv2.INTER_AREA)
    expected = cv2.resize(small, (112, 112))
    matrix = resolution_matrices(112)[narrow]
    np.testing.assert_allclose(matrix @ line @ matrix.T, expected, atol=0.02)


def test_the_batched_way_never_waits_for_the_device(cache: FaceCache) -> None:
    # Tensors on PyTorch's meta device have no values: whatever would read one back to the host raises, and so does
    # what mixes devices.
    everything = AugmentConfig(**{name: strength for name, (strength, _, _) in PARTS.items()})
    plan = plan_of(cache, everything, Contract(input_size=48))
    faces = render_on_device(cache.crops, plan, 48, "bgr", torch.device("meta"))
    assert faces.device.type == "meta"
    assert faces.shape == (24, 3, 48, 48)
