"""NME, FR and AUC against plain independent computations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from pfld_edge_calib import accuracy, accuracy_by_subset, nme_per_face


def test_nme_of_a_face_shifted_by_a_tenth_of_the_eye_distance_is_a_tenth() -> None:
    truth = np.random.default_rng(0).uniform(0, 100, (3, 98, 2))
    eyes = np.hypot(*(truth[:, 60] - truth[:, 72]).T)
    moved = truth + np.stack([eyes * 0.1, np.zeros(3)], axis=1)[:, None]
    assert nme_per_face(moved, truth, (60, 72)) == pytest.approx([0.1] * 3)


@given(st.lists(st.floats(0.001, 0.3), min_size=1, max_size=30))
def test_auc_is_the_integral_of_the_cumulative_error_curve(errors: list[float]) -> None:
    nmes = np.array(errors)
    integral, _ = quad(lambda x: (nmes <= x).mean(), 0, 0.1, points=sorted({*nmes[nmes < 0.1]}) or None, limit=200)
    assert accuracy(nmes).auc == pytest.approx(integral / 0.1, abs=1e-6)


def test_failure_rate_counts_faces_over_the_threshold() -> None:
    assert accuracy(np.array([0.05, 0.1, 0.2, 0.3])).failure_rate == 0.5


def test_subsets_hold_the_faces_with_their_attribute() -> None:
    found = accuracy_by_subset(np.array([0.1, 0.2]), [frozenset({"blur"}), frozenset()])
    assert (found["all"].faces, found["blur"].faces, found["blur"].nme) == (2, 1, pytest.approx(0.1))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        nme_per_face(np.zeros((1, 68, 2)), np.zeros((1, 98, 2)), (60, 72))
