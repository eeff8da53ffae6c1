"""The One-Euro filter against the paper's algorithm 1 and scipy, and the smoothing of a face."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.spatial import procrustes

from pfld_edge_runtime import FaceSmoother, OneEuro, OneEuroFilter, PfldEdgeError, Smoothing, SmoothingError
from pfld_edge_runtime.geometry.landmarks import Shape, fit_similarity


def algorithm_1(samples: list[float], rates: list[float], mincutoff: float, beta: float, dcutoff: float) -> list[float]:
    """Casiez, Roussel, Vogel, CHI 2012, algorithms 1 to 3, line by line, for one number."""

    def alpha(rate: float, cutoff: float) -> float:
        tau = 1.0 / (2 * math.pi * cutoff)
        te = 1.0 / rate
        return 1.0 / (1.0 + tau / te)

    first, hatxprev, dhatxprev, result = True, 0.0, 0.0, []
    for x, rate in zip(samples, rates, strict=True):
        if first:
            # The low-pass filters give their first input back: dx = 0 and x.
            first, hatxprev, dhatxprev = False, x, 0.0
        else:
            dx = (x - hatxprev) * rate
            a = alpha(rate, dcutoff)
            dhatxprev = a * dx + (1 - a) * dhatxprev
            a = alpha(rate, mincutoff + beta * abs(dhatxprev))
            hatxprev = a * x + (1 - a) * hatxprev
        result.append(hatxprev)
    return result


signals = st.lists(st.tuples(st.floats(-100, 100), st.floats(5, 240)), min_size=1, max_size=40)
cutoffs = st.floats(0.01, 20)


@given(signal=signals, mincutoff=cutoffs, beta=st.floats(0, 50), dcutoff=cutoffs)
def test_the_filter_is_the_papers(
    signal: list[tuple[float, float]], mincutoff: float, beta: float, dcutoff: float
) -> None:
    samples, rates = [x for x, _ in signal], [rate for _, rate in signal]
    smooth = OneEuroFilter(OneEuro(mincutoff, beta, dcutoff))
    found = [float(smooth(np.array([x]), 1 / rate)[0]) for x, rate in signal]
    np.testing.assert_allclose(found, algorithm_1(samples, rates, mincutoff, beta, dcutoff), rtol=1e-9, atol=1e-9)


@given(cutoff=st.floats(0.05, 10), interval=st.floats(0.005, 0.2))
def test_without_a_slope_it_is_a_first_order_low_pass(cutoff: float, interval: float) -> None:
    samples = np.random.default_rng(3).normal(size=(50, 4, 2))
    smooth = OneEuroFilter(OneEuro(cutoff, beta=0.0))
    found = np.array([smooth(sample, interval) for sample in samples])
    share = 1 / (1 + 1 / (2 * math.pi * cutoff * interval))
    start = (1 - share) * samples[:1]
    expected, _ = lfilter([share], [1, share - 1], samples, axis=0, zi=start)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_points_side_by_side_have_speeds_of_their_own() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(30, 3, 2)).cumsum(axis=0)
    both, alone = OneEuroFilter(OneEuro(0.5, 2.0, dead_band=2.0)), OneEuroFilter(OneEuro(0.5, 2.0, dead_band=2.0))
    for sample in samples:
        np.testing.assert_allclose(both(sample, 0.04)[1], alone(sample[1], 0.04), atol=1e-12)


def test_a_dead_band_ignores_white_noise_of_any_strength_but_no_motion() -> None:
    noise = np.random.default_rng(1).normal(size=(600, 1))
    for strength in (0.01, 1.0, 100.0):
        banded, plain = OneEuroFilter(OneEuro(0.1, 5.0, 1.0, 5.0)), OneEuroFilter(OneEuro(0.1, 0.0))
        pairs = np.array([(banded(x, 1 / 30)[0], plain(x, 1 / 30)[0]) for x in strength * noise])[200:]
        # Inside the band it is the filter of the least cutoff, once both have forgotten how they began.
        np.testing.assert_allclose(pairs[:, 0], pairs[:, 1], atol=0.03 * strength)
    moving = OneEuroFilter(OneEuro(0.1, 5.0, 1.0, 5.0))
    track = np.r_[np.zeros(60), np.arange(60) * 1.0]
    off = [moving(np.array([x + 0.1 * n]), 1 / 30)[0] - x for x, n in zip(track, noise[:120, 0], strict=True)]
    assert np.abs(off[-20:]).max() < 1.0  # less than one frame behind


@pytest.mark.parametrize(
    "settings",
    [{"min_cutoff": 0}, {"min_cutoff": math.nan}, {"beta": -1}, {"derivative_cutoff": 0}, {"dead_band": math.inf}],
)
def test_settings_that_make_no_filter_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SmoothingError, match=next(iter(settings))) as caught:
        OneEuro(**settings)
    assert isinstance(caught.value, PfldEdgeError)
    assert isinstance(caught.value, ValueError)


@given(turn=st.floats(-3, 3), size=st.floats(0.2, 5), x=st.floats(-500, 500), y=st.floats(-500, 500))
def test_a_similarity_is_found_exactly(turn: float, size: float, x: float, y: float) -> None:
    points = np.random.default_rng(0).normal(size=(98, 2)) * 100
    matrix = size * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    goal = points @ matrix.T + (x, y)
    np.testing.assert_allclose(fit_similarity(points, goal).apply(points), goal, atol=1e-6)


def test_the_residual_of_a_similarity_is_scipys() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(98, 2)) * 100
    goal = points * 1.2 + rng.normal(size=(98, 2)) * 10
    step = fit_similarity(points, goal)
    residual = ((goal - step.apply(points)) ** 2).sum()
    disparity = procrustes(goal, points)[2]  # of shapes of unit norm
    assert residual / ((goal - goal.mean(axis=0)) ** 2).sum() == pytest.approx(disparity, rel=1e-9)


def sequence(count: int = 120) -> np.ndarray:
    """Noisy landmarks of a face of 200 pixels that rests and then moves, turns and grows."""
    rng = np.random.default_rng(2)
    shape = rng.uniform(-100, 100, (98, 2))
    part = np.clip((np.arange(count) - 40) / 60, 0, 1)
    turns = np.exp((0.2 + 0.3j) * part)
    moved = (shape[:, 0] + 1j * shape[:, 1])[None] * turns[:, None] + (300 + 200j) * part[:, None]
    return np.stack([moved.real, moved.imag], axis=-1) + rng.normal(0, 1, (count, 98, 2))


def filtered(samples: np.ndarray, settings: Smoothing) -> np.ndarray:
    smooth = FaceSmoother(settings)
    return np.array([smooth(sample, 1 / 30) for sample in samples])


@given(scale=st.floats(0.1, 20), turn=st.floats(-3, 3))
def test_smoothing_does_not_depend_on_the_faces_place_size_or_turn(scale: float, turn: float) -> None:
    samples = sequence(60)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    expected = filtered(samples, Smoothing()) @ matrix.T + (1000, -50)
    found = filtered(samples @ matrix.T + (1000, -50), Smoothing())
    # The unit, the longer side of an upright box, changes with the turn by at most sqrt(2).
    tolerance = (1e-6 if turn == 0 else 2.0) * scale
    assert np.abs(found - expected).max() < tolerance


def test_equal_constant_cutoffs_filter_a_face_as_they_filter_its_points() -> None:
    # Small motions: there a similarity is linear in the landmarks.
    rng = np.random.default_rng(0)
    samples = rng.uniform(0, 200, (98, 2)) + rng.normal(0, 0.01, (60, 98, 2))
    settings = OneEuro(1.0)
    points = OneEuroFilter(settings)
    expected = np.array([points(sample, 1 / 30) for sample in samples])
    np.testing.assert_allclose(filtered(samples, Smoothing(settings, settings)), expected, atol=1e-4)


def test_by_default_a_still_face_rests_and_a_moving_one_is_followed() -> None:
    samples = sequence()
    truth = sequence() - np.random.default_rng(2).normal(0, 0, 2)
    found = filtered(samples, Smoothing())
    rest = np.sqrt(samples[10:40].var(axis=0).sum(-1)).mean(), np.sqrt(found[10:40].var(axis=0).sum(-1)).mean()
    assert rest[1] < 0.3 * rest[0]
    assert np.linalg.norm(found[60:100] - truth[60:100], axis=-1).mean() < 3.0  # it moves 6 pixels a frame


def test_landmarks_that_fall_on_a_point_do_not_spoil_what_follows() -> None:
    smooth = FaceSmoother(Smoothing())
    samples = sequence(3)
    for sample in (samples[0], np.full((98, 2), 7.0), samples[1], samples[2]):
        found = smooth(sample, 1 / 30)
        assert np.isfinite(found).all()
    assert np.abs(found - samples[2]).max() < 0.1 * Shape(samples[2]).size
