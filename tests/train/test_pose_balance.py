"""Faces in profile are shown more often."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfld_edge_runtime import WFLW_98, Contract
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.face_cache import open_cache
from pfld_edge_train.pose_balance import MOST, TURNED_SHARE, balanced_repeats

EYES = WFLW_98.normalizing_points


def faces_of(shares: list[float]) -> np.ndarray:
    """Faces in a box of 100 pixels whose outer eye corners are so many of them apart."""
    points = np.zeros((len(shares), 98, 2), np.float32)
    points[:, 0], points[:, 32] = (0, 0), (100, 100)
    points[:, EYES[0]] = points[:, EYES[1]] = (50, 40)
    points[:, EYES[1], 0] += 100 * np.array(shares, np.float32)
    return points


def repeats_of(shares: list[float], balance: float, repeat: int = 6) -> list[int]:
    count = len(shares)
    found = balanced_repeats(np.full(count, repeat), np.full(count, balance), faces_of(shares), EYES)
    return list(found.tolist())


def test_a_face_counts_by_the_inverse_of_its_eyes_distance() -> None:
    assert repeats_of([TURNED_SHARE, TURNED_SHARE / 2, TURNED_SHARE / 3], 1.0) == [6, 12, 18]
    assert repeats_of([TURNED_SHARE, TURNED_SHARE / 4], 1.5) == [6, 48]


def test_without_balance_every_face_keeps_its_number() -> None:
    assert repeats_of([0.5, 0.3, 0.1, 0.0], 0.0) == [6, 6, 6, 6]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 4), st.integers(1, 9))
def test_no_face_is_shown_less_often_nor_without_end(shares: list[float], balance: float, repeat: int) -> None:
    found = np.array(repeats_of(shares, balance, repeat))
    assert (found >= repeat).all()
    assert (found <= MOST * repeat).all()
    order = np.argsort(shares, kind="stable")
    assert (np.diff(found[order]) <= 0).all(), "a face that is turned farther is shown less often"


def test_the_size_of_the_picture_changes_nothing() -> None:
    points = faces_of([0.48, 0.3, 0.1])
    ones = np.ones(3, np.int64), np.full(3, 1.5)
    small, large = (balanced_repeats(*ones, points * scale, EYES) for scale in (0.1, 40.0))
    np.testing.assert_array_equal(small, large)


def test_a_source_says_its_balance(tmp_path: Path, noise_faces: Path) -> None:
    data = {"path": str(noise_faces / "faces.csv"), "repeat": 2}
    cut = [
        open_cache(TrainConfig.from_dict({"input_size": 32, "data": [data | extra]}), tmp_path, Contract(input_size=32))
        for extra in ({}, {"pose_balance": 2.0})
    ]
    assert (cut[0].repeats == 2).all()
    distance = np.linalg.norm(cut[1].landmarks[:, EYES[0]] - cut[1].landmarks[:, EYES[1]], axis=1)
    share = distance / np.ptp(cut[1].landmarks, axis=1).max(axis=1)
    assert cut[1].repeats.tolist() == pytest.approx(np.round(2 * np.clip((0.48 / share) ** 2, 1, 16)).tolist())
