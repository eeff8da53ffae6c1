"""The geometric augmentation: pixels and landmarks move together, and the plain frame is the device's crop."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pfld_edge_runtime import WFLW_98, crop_faces, crop_windows
from pfld_edge_train.augment.warp import shrink_factors, warp_picture, warp_pictures
from pfld_edge_train.augment_config import AugmentConfig
from pfld_edge_train.geometry import FaceFrames, plain_frames, random_frames, warp_landmarks

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


@given(x=st.integers(0, 30), y=st.integers(0, 30), side=st.integers(60, 110))
@settings(max_examples=15, deadline=None)
@WARPS
def test_the_plain_frame_is_the_runtimes_crop(warp: Warp, x: int, y: int, side: int) -> None:
    photo = random_face(x)[0]
    box = [x + 20, y + 20, x + 20 + side // 2, y + 20 + side // 2]
    corners = np.array([[box[:2], np.array(box[2:]) - 1e-3]], np.float32)
    windows = crop_windows(box, 2.0)
    device = crop_faces(photo, windows, 112)[0].astype(int)
    frames = plain_frames(corners, np.ones((1, 2), np.bool_), 2.0)
    # The runtime rounds its centre down to a whole pixel of the photograph.
    frames = FaceFrames(frames.matrices, windows.corners + windows.sizes[:, None] / 2, frames.flipped)
    assert np.abs(warp(photo, frames.affines(112)[0], 112, 1)[1:-1, 1:-1] - device[1:-1, 1:-1]).max() <= 2
    expected = windows.to_crop(corners)
    assert np.abs(warp_landmarks(corners, frames, np.arange(2)) - expected).max() < 1e-3


def test_the_plain_frame_lies_where_the_runtime_cuts_within_two_pixels() -> None:
    for seed in range(20):
        points = np.random.default_rng(seed).uniform(30, 130, (1, 98, 2)).astype(np.float32)
        box = np.concatenate([np.floor(points[0].min(axis=0)), np.floor(points[0].max(axis=0)) + 1])
        windows = crop_windows(box, 1.2)
        frames = plain_frames(points, KNOWN, 1.2)
        assert abs(frames.matrices[0, 0, 0] - windows.sizes[0]) < 2.4
        assert np.abs(frames.centers[0] - windows.corners[0] - windows.sizes[0] / 2).max() < 1.6


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
    assert shrink_factors(affine[None], np.array([True])).tolist() == [3]
    assert shrink_factors(affine[None], np.array([False])).tolist() == [1]
    expected = cv2.resize(picture, (56, 56), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(warp(picture, affine, 56, 3) - expected).max() <= 1
