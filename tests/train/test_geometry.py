"""The geometric augmentation: pixels and landmarks move together, and the plain frame is the device's crop."""

import cv2
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfld_edge_runtime import WFLW_98, Contract, crop_faces, crop_windows
from pfld_edge_train.augment_config import AugmentConfig
from pfld_edge_train.geometry import random_frames, warp_faces, warp_landmarks

MIRROR = torch.tensor(WFLW_98.mirror)
SPOTS = (3, 40, 60, 85)


def spotted_face(seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """A black crop with a bright blob at some landmarks."""
    landmarks = np.random.default_rng(seed).uniform(45, 115, (98, 2)).astype(np.float32)
    crop = np.zeros((160, 160), np.float32)
    ys, xs = np.mgrid[:160, :160] + 0.5
    for spot in SPOTS:
        crop += 250 * np.exp(-((xs - landmarks[spot, 0]) ** 2 + (ys - landmarks[spot, 1]) ** 2) / 8)
    return np.repeat(crop.clip(0, 255).astype(np.uint8)[:, :, None], 3, 2), torch.from_numpy(landmarks)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_landmarks_follow_the_pixels(seed: int) -> None:
    crop, landmarks = spotted_face(seed)
    frames = random_frames(landmarks[None], 1.2, AugmentConfig(), torch.Generator().manual_seed(seed))
    face = warp_faces(crop[None], frames, 112)[0, 0].numpy()
    moved = warp_landmarks(landmarks[None], frames, MIRROR)[0].numpy() * 112
    for spot in SPOTS:
        point = moved[WFLW_98.mirror[spot]] if bool(frames.flipped[0]) else moved[spot]
        x, y = point - 0.5
        if 4 < x < 107 and 4 < y < 107:
            window = face[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3]
            assert window.max() > 180, "no bright blob where the landmark went"


def test_the_plain_frame_is_the_devices_crop() -> None:
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8), (0, 0), 3)
    landmarks = np.random.default_rng(1).uniform(100, 200, (98, 2)).astype(np.float32)
    landmarks[:2] = (100, 100), (199, 199)
    box = [100, 100, 200, 200]
    device = crop_faces(photo, crop_windows(box, 1.2), 112)[0].astype(int)
    wide = crop_windows(box, 1.8)
    cached = crop_faces(photo, wide, 180)
    at_cache = torch.from_numpy(wide.to_crop(landmarks[None]) * 180)
    frames = random_frames(at_cache, Contract().crop.margin, None)
    trained = warp_faces(cached, frames, 112)[0].permute(1, 2, 0).numpy()
    # The tight box is floored to whole pixels and resampled once more: half a pixel on a smooth photograph.
    assert np.abs(device - trained).mean() < 4
    expected = crop_windows(box, 1.2).to_crop(landmarks[None])
    assert np.abs(warp_landmarks(at_cache, frames, MIRROR).numpy() - expected).max() < 0.01


def test_a_mirrored_frame_swaps_left_and_right() -> None:
    landmarks = spotted_face(3)[1][None].repeat(64, 1, 1)
    frames = random_frames(landmarks, 1.2, AugmentConfig(rotation=0, shear=0, shift=0, scale=0))
    moved = warp_landmarks(landmarks, frames, MIRROR)
    mirrored, straight = moved[frames.flipped][0], moved[~frames.flipped][0]
    torch.testing.assert_close(mirrored[:, 0], 1 - straight[MIRROR, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(mirrored[:, 1], straight[MIRROR, 1], atol=1e-4, rtol=0)
