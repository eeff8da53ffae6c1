"""The photometric augmentation stays what a camera could give, and repeats for a seed."""

import numpy as np
import torch

from pfld_edge_train.augment import augment_pixels
from pfld_edge_train.augment_config import AugmentConfig

OFF = AugmentConfig(light=0, color=0, noise=0, low_resolution=0, blur=0, occlusion=0, gray=0)


def faces() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 64, 64)).astype(np.float32))


def test_with_everything_off_nothing_changes() -> None:
    torch.testing.assert_close(augment_pixels(faces(), OFF), faces())


def test_results_are_whole_grey_levels() -> None:
    changed = augment_pixels(faces(), AugmentConfig(), torch.Generator().manual_seed(1))
    assert changed.min() >= 0
    assert changed.max() <= 255
    torch.testing.assert_close(changed, changed.round())


def test_one_seed_gives_one_result() -> None:
    first, second = (augment_pixels(faces(), AugmentConfig(), torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


def test_gray_faces_have_equal_channels() -> None:
    changed = augment_pixels(
        faces(), AugmentConfig(light=0, color=0, noise=0, low_resolution=0, blur=0, occlusion=0, gray=1)
    )
    assert torch.equal(changed[:, 0], changed[:, 2])


def test_light_changes_every_face_differently() -> None:
    same = torch.full((8, 3, 64, 64), 120.0)
    changed = augment_pixels(same, AugmentConfig(color=0, noise=0, low_resolution=0, blur=0, occlusion=0, gray=0))
    assert len({round(float(face.mean()), 1) for face in changed}) == 8
