"""The geometric augmentation: pixels and landmarks move together, and the plain frame is the device's crop."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pfld_edge_runtime import WFLW_98, crop_faces, crop_windows, tight_box
from pfld_edge_train.augment.geometry import (
    plain_frames,
    random_frames,
    supersampling,
    warp_landmarks,
    warp_picture,
    warp_pictures,
)
from pfld_edge_train.config import AugmentConfig

MIRROR = np.array(WFLW_98.mirror)
SPOTS = (3, 40, 60, 85)
KNOWN = np.ones((1, 98), np.bool_)

Warp = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]


def with_opencv(picture: np.ndarray, affine: np.ndarray, size: int, factor: int = 1) -> np.ndarray:
    return warp_picture(picture, affine, (size, size), factor)


def with_torch(picture: np.ndarray, affine: np.ndarray, size: int, factor: int = 1) -> np.ndarray:
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    return warp_pictures(planes, affine[None], size, factor)[0].permute(1, 2, 0).round().numpy()


WARPS = pytest.mark.parametrize("warp", [with_opencv, with_torch])


def random_face(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random cached crop, and landmarks in its middle."""
    random = np.random.default_rng(seed)
    crop = cv2.GaussianBlur(random.integers(0, 256, (160, 160, 3), np.uint8), (0, 0), 2)
    return crop, random.uniform(45, 115, (1, 98, 2)).astype(np.float32)


@given(seed=st.integers(0, 10_000), rotation=st.floats(0, 60), shear=st.floats(0, 0.5))
@settings(max_examples=15, deadline=None)
@WARPS
def test_landmarks_follow_dots(warp: Warp, seed: int, rotation: float, shear: float) -> None:
    landmarks = random_face(seed)[1]
    config = AugmentConfig(rotation=rotation, shear=shear)
    frames = random_frames(landmarks, KNOWN, 1.2, config, np.random.default_rng(seed))
    moved = warp_landmarks(landmarks, frames, MIRROR)[0] * 112 - 0.5
    ys, xs = np.mgrid[:160, :160] + 0.5
    for spot in SPOTS:
        x, y = landmarks[0, spot]
        dot = 250 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 18)
        picture = np.repeat(dot.astype(np.uint8)[:, :, None], 3, axis=2)
        warped = warp(picture, frames.affines(112)[0], 112, 1)[:, :, 0]
        point = moved[MIRROR[spot]] if frames.flipped[0] else moved[spot]
        if (point > 15).all() and (point < 96).all():
            found = ndimage.center_of_mass(warped)[::-1]
            assert np.abs(found - point).max() < 0.15


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
@WARPS
def test_pixels_are_those_of_scipys_bilinear_warp(warp: Warp, seed: int) -> None:
    crop, landmarks = random_face(seed)
    frames = random_frames(landmarks, KNOWN, 1.2, AugmentConfig(rotation=40), np.random.default_rng(seed))
    affine = frames.affines(112)[0]
    # scipy's axes are y, x.
    matrix, offset = affine[::-1, 1::-1], affine[::-1, 2]
    channels = [
        ndimage.affine_transform(crop[:, :, i].astype(float), matrix, offset, (112, 112), order=1, mode="grid-constant")
        for i in range(3)
    ]
    assert np.abs(warp(crop, affine, 112, 1) - np.stack(channels, axis=2)).max() < 1.6


@given(seed=st.integers(0, 10_000), margin=st.floats(0.5, 2.5), whole=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_plain_frame_is_the_runtimes_window(seed: int, margin: float, whole: bool) -> None:
    points = np.random.default_rng(seed).uniform(-30, 900, (1, 98, 2)).astype(np.float32)
    points = np.round(points) if whole else points
    windows = crop_windows(tight_box(points), margin)
    frames = plain_frames(points, KNOWN, margin)
    np.testing.assert_array_equal(frames.matrices[0], windows.sizes[0] * np.eye(2))
    np.testing.assert_array_equal(frames.centers[0] - frames.matrices[0].sum(axis=1) / 2, windows.corners[0])
    expected = windows.to_crop(points)
    np.testing.assert_allclose(warp_landmarks(points, frames, MIRROR), expected, atol=1e-5)


@given(seed=st.integers(0, 10_000), spread=st.floats(20, 50))
@settings(max_examples=15, deadline=None)
@WARPS
def test_plain_pixels_are_the_runtimes_crop(warp: Warp, seed: int, spread: float) -> None:
    photo = random_face(seed)[0]
    points = np.random.default_rng(seed).uniform(80 - spread, 80 + spread, (1, 98, 2)).astype(np.float32)
    device = crop_faces(photo, crop_windows(tight_box(points), 1.2), 112)[0].astype(int)
    plain = warp(photo, plain_frames(points, KNOWN, 1.2).affines(112)[0], 112, 1)
    # The runtime repeats its window's edges, where training has the pixels beyond them.
    assert np.abs(plain[1:-1, 1:-1] - device[1:-1, 1:-1]).max() <= 2


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_without_distortion_a_random_frame_is_the_runtimes_window(flip: float) -> None:
    still = AugmentConfig(rotation=0, shear=0, shift=0, scale=0, flip=flip)
    for seed in range(50):
        points = np.random.default_rng(seed).uniform(30, 630, (1, 98, 2)).astype(np.float32)
        # A photograph of 700 columns in the mirror.
        seen = points * (-1, 1) + (700, 0) if flip else points
        windows = crop_windows(tight_box(seen), 1.2)
        frames = random_frames(points, KNOWN, 1.2, still, np.random.default_rng(seed))
        moved = warp_landmarks(points, frames, np.arange(98))
        np.testing.assert_allclose(moved, windows.to_crop(seen.astype(np.float32)), atol=1e-5)


def test_a_frame_in_a_cached_crop_samples_the_same_places_of_the_photograph() -> None:
    points = np.random.default_rng(3).uniform(100, 400, (1, 98, 2)).astype(np.float32)
    frames = random_frames(points, KNOWN, 1.2, AugmentConfig(), np.random.default_rng(3))
    window = np.array([[37, 51, 421]])
    cached = frames.within(window, 168)
    indices = np.array([[0, 0, 1], [111, 3, 1], [50, 80, 1]]).T
    # Pixel centres lie half a pixel from their indices.
    expected = frames.affines(112)[0] @ indices + 0.5
    found = (cached.affines(112)[0] @ indices + 0.5) * 421 / 168 + window[0, :2, None]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(
        warp_landmarks((points - window[0, :2]) * 168 / 421, cached, MIRROR),
        warp_landmarks(points, frames, MIRROR),
        atol=1e-6,
    )


def test_a_mirrored_frame_swaps_left_and_right() -> None:
    landmarks = np.repeat(random_face(3)[1], 64, axis=0)
    config = AugmentConfig(rotation=0, shear=0, shift=0, scale=0)
    frames = random_frames(landmarks, KNOWN.repeat(64, axis=0), 1.2, config, np.random.default_rng(0))
    moved = warp_landmarks(landmarks, frames, MIRROR)
    mirrored, straight = moved[frames.flipped][0], moved[~frames.flipped][0]
    np.testing.assert_allclose(mirrored[:, 0], 1 - straight[MIRROR, 0], atol=1e-5)
    np.testing.assert_allclose(mirrored[:, 1], straight[MIRROR, 1], atol=1e-5)


def test_boxes_err_as_much_as_the_strengths_say() -> None:
    landmarks = np.repeat(random_face(5)[1], 4000, axis=0)
    config = AugmentConfig(rotation=0, shear=0, flip=0, shift=0.04, scale=0.07)
    known = KNOWN.repeat(4000, axis=0)
    frames = random_frames(landmarks, known, 1.2, config, np.random.default_rng(0))
    plain = plain_frames(landmarks, known, 1.2)
    side = plain.matrices[0, 0, 0]
    assert np.std((frames.centers - plain.centers) / side, axis=0) == pytest.approx(0.04, rel=0.05)
    assert np.std(np.log(frames.matrices[:, 0, 0] / side)) == pytest.approx(0.07, rel=0.05)


def test_unknown_landmarks_do_not_move_the_box() -> None:
    landmarks = random_face(7)[1]
    known = np.arange(98)[None] % 3 > 0
    spoilt = np.where(known[:, :, None], landmarks, np.nan)
    expected = plain_frames(landmarks[known][None], np.ones((1, known.sum()), np.bool_), 1.2)
    found = plain_frames(spoilt, known, 1.2)
    np.testing.assert_array_equal(found.matrices, expected.matrices)
    np.testing.assert_array_equal(found.centers, expected.centers)


@WARPS
def test_shrinking_smoothly_averages_what_a_pixel_covers(warp: Warp) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (168, 168, 3), np.uint8)
    # 3 pixels become 1, and the samples fall on pixel centres.
    affine = np.array([[3.0, 0, 1], [0, 3, 1]])
    assert supersampling(affine[None], np.array([True])).tolist() == [3]
    assert supersampling(affine[None], np.array([False])).tolist() == [1]
    expected = cv2.resize(picture, (56, 56), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(warp(picture, affine, 56, 3) - expected).max() <= 1
