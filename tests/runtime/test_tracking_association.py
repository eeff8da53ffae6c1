"""Which box is which face: greedy pairs against the best assignment, and twins."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pfld_edge_runtime.tracking.association import are_twins, closest_pairs


def boxes(centers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([centers - sizes[:, None] / 2, centers + sizes[:, None] / 2], axis=1)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 8), gone=st.integers(0, 3), scale=st.floats(0.01, 100))
def test_pairs_are_the_best_assignment_where_heads_stand_apart(seed: int, count: int, gone: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    # Heads of size 1 stand 1.5 apart and moved by up to 0.35 each way.
    centers = 1.5 * rng.permutation(np.stack(np.meshgrid(range(3), range(3)), axis=-1).reshape(-1, 2))[:count]
    known = boxes(centers, np.ones(count)) * scale
    order = rng.permutation(count)[: max(0, count - gone)]
    moved = centers[order] + rng.uniform(-0.35, 0.35, (len(order), 2))
    found = boxes(moved, np.ones(len(order))) * scale
    distance = np.linalg.norm(centers[:, None] - moved[None], axis=-1)
    expected = {(int(row), int(column)) for row, column in zip(*linear_sum_assignment(distance), strict=True)}
    assert set(closest_pairs(known, found, gate=0.7)) == expected


def test_boxes_beyond_the_gate_are_no_pair() -> None:
    here, there = np.array([[0.0, 0, 10, 10]]), np.array([[8.0, 0, 18, 10]])
    assert closest_pairs(here, there, gate=0.7) == []
    assert closest_pairs(here, there, gate=0.9) == [(0, 0)]
    assert closest_pairs(here, np.array([[-5.0, -5, 15, 15]]), gate=0.6) == []  # the same place, twice the size


def test_nothing_pairs_with_nothing() -> None:
    assert closest_pairs(np.zeros((0, 4)), np.array([[0.0, 0, 1, 1]]), gate=1.0) == []


def test_twins_lie_on_one_face() -> None:
    shape = np.random.default_rng(0).uniform(0, 100, (98, 2))
    assert are_twins(shape, [shape + 10, shape + 50, shape * 2]) == [True, False, False]
