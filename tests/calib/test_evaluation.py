"""Accuracy, intervals and verdicts of an evaluation, against scipy and plain reimplementations."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import bootstrap, norm

from pfld_edge_calib import Face, jittered, portraits
from pfld_edge_calib.evaluation.drift import DriftEstimate, Verdict, faces_needed, judge, mean_interval, paired_drift
from pfld_edge_calib.evaluation.metrics import (
    FaceErrors,
    accuracy,
    accuracy_by_subset,
    eye_centres,
    face_errors,
    landmark_regions,
    measure_deviation,
    nme_per_face,
)
from pfld_edge_calib.evaluation.robustness import measure_robustness
from pfld_edge_calib.evaluation.verification import (
    VerificationSettings,
    shipping_verdict,
    verification_record,
    verify_models,
)
from pfld_edge_calib.find_landmarks import as_detected_by, matched
from pfld_edge_runtime import FIVE_POINTS, IBUG_68, WFLW_98, Contract, LandmarkModel
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array


def faces_and_guesses(count: int, seed: int = 0) -> tuple[Float64Array, Float64Array]:
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 200, (count, 98, 2))
    return truth, truth + random.normal(0, 8, truth.shape) * random.uniform(0, 2, (count, 1, 1))


def test_three_normalizations_agree_with_a_plain_loop() -> None:
    truth, found = faces_and_guesses(20)
    errors = face_errors(found, truth, WFLW_98)
    assert errors.pupil is not None
    for i in range(20):
        mean = float(np.diag(cdist(found[i], truth[i])).mean())
        assert errors.ocular[i] == pytest.approx(mean / math.dist(truth[i, 60], truth[i, 72]))
        assert errors.pupil[i] == pytest.approx(mean / math.dist(truth[i, 96], truth[i, 97]))
        low, high = truth[i].min(axis=0), truth[i].max(axis=0)
        assert errors.diagonal[i] == pytest.approx(mean / math.dist(low, high))


@given(st.lists(st.one_of(st.floats(0.001, 0.3), st.just(math.nan)), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_missed_faces_are_failures_in_rates_and_area(errors: list[float]) -> None:
    nmes = np.array(errors)
    truth, found = faces_and_guesses(len(nmes))
    known = face_errors(found, truth, WFLW_98)
    figures = accuracy(replace(known, ocular=nmes))
    hit = nmes[~np.isnan(nmes)]
    assert figures.misses == len(nmes) - len(hit)
    assert figures.failure_rate_08 == pytest.approx(1 - (hit <= 0.08).sum() / len(nmes))
    assert figures.failure_rate_10 == pytest.approx(1 - (hit <= 0.1).sum() / len(nmes))
    corners = sorted({*hit[hit < 0.1]}) or None
    area, _ = quad(lambda x: (hit <= x).sum() / len(nmes), 0, 0.1, points=corners, limit=200)
    assert figures.auc_10 == pytest.approx(area / 0.1, abs=1e-6)


def test_an_error_of_the_threshold_is_no_failure() -> None:
    nmes = np.array([0.05, 0.1, 0.2, 0.3])
    assert accuracy(FaceErrors(nmes, None, nmes, np.ones(4, bool))).failure_rate_10 == 0.5


def test_nme_of_a_face_shifted_by_a_tenth_of_the_eye_distance_is_a_tenth() -> None:
    truth = np.random.default_rng(0).uniform(0, 100, (3, 98, 2))
    eyes = np.hypot(*(truth[:, 60] - truth[:, 72]).T)
    moved = truth + np.stack([eyes * 0.1, np.zeros(3)], axis=1)[:, None]
    assert nme_per_face(moved, truth, (60, 72)) == pytest.approx([0.1] * 3)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        nme_per_face(np.zeros((1, 68, 2)), np.zeros((1, 98, 2)), (60, 72))


def test_subsets_hold_their_own_faces_and_empty_ones_are_left_out() -> None:
    truth, found = faces_and_guesses(4)
    errors = face_errors(found, truth, WFLW_98)
    members = np.array([[True, False], [False, False], [True, False], [False, False]])
    figures = accuracy_by_subset(errors, ["blur", "makeup"], members)
    assert list(figures) == ["all", "blur"]
    assert figures["blur"].nme == pytest.approx(errors.ocular[[0, 2]].mean())


def test_regions_part_the_98_points() -> None:
    regions = landmark_regions(WFLW_98)
    assert {name: len(points) for name, points in regions.items()} == {
        "brows": 18, "pupils": 2, "eyes": 16, "nose": 9, "mouth": 20, "contour": 33,
    }  # fmt: skip
    assert sorted(point for points in regions.values() for point in points) == list(range(98))


def test_pupils_of_300w_are_the_means_of_its_eye_points() -> None:
    assert eye_centres(WFLW_98) == ((96,), (97,))
    assert eye_centres(IBUG_68) == (tuple(range(36, 42)), tuple(range(42, 48)))
    assert eye_centres(FIVE_POINTS) == ((0,), (1,))


def ratio(change: Float64Array, base: Float64Array, axis: int = -1) -> Float64Array:
    return np.asarray(change.sum(axis=axis) / base.sum(axis=axis))


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_the_interval_is_scipys_bca(skew: float) -> None:
    random = np.random.default_rng(3)
    base = random.gamma(4, 0.015, 120)
    change = 0.002 * (random.normal(0.3, 1, 120) + skew * random.exponential(2, 120))
    found = paired_drift(base + change, base, np.arange(120))
    expected = bootstrap(
        (change, base), ratio, paired=True, vectorized=True, n_resamples=20000, random_state=1, method="BCa"
    )
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.value == pytest.approx(change.sum() / base.sum())
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.03 * width)
    power = norm.ppf(0.975) + norm.ppf(0.8)
    assert found.resolvable == pytest.approx(power * expected.standard_error, rel=0.05)


def test_the_interval_of_a_mean_is_scipys() -> None:
    nmes = np.random.default_rng(5).gamma(4, 0.015, 120)
    found = mean_interval(np.append(nmes, math.nan), np.arange(121))
    expected = bootstrap((nmes,), np.mean, n_resamples=20000, random_state=1, method="BCa").confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.03 * (expected.high - expected.low))
    assert mean_interval(nmes, np.arange(120) % 7) is None


def test_faces_of_one_photograph_count_once() -> None:
    """Ten copies of every face tell no more than one."""
    random = np.random.default_rng(0)
    base, change = random.gamma(4, 0.015, 60), random.normal(0, 0.002, 60)
    once = paired_drift(base + change, base, np.arange(60))
    copies = [np.repeat(values, 10) for values in (base + change, base, np.arange(60))]
    often = paired_drift(*copies)
    assert (often.photographs, often.faces) == (60, 600)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert often.resolvable == pytest.approx(once.resolvable)


def test_large_sets_are_resampled_in_bundles_of_the_same_width() -> None:
    random = np.random.default_rng(0)
    base, change = random.gamma(4, 0.015, 20_000), random.normal(0.0001, 0.002, 20_000)
    found = paired_drift(base + change, base, np.arange(20_000), resamples=2000)
    half = norm.ppf(0.975) * np.std(change) / math.sqrt(20_000) / base.mean()
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


def test_few_photographs_give_the_extremes_of_single_faces() -> None:
    base, change = np.full(6, 0.05), np.array([0.001, -0.002, 0.003, 0, 0, 0])
    found = paired_drift(base + change, base, np.array([0, 0, 0, 1, 1, 1]))
    assert found.method == "extremes"
    assert (found.low, found.high) == pytest.approx((-0.04, 0.06))


def estimate(value: float, low: float, high: float, faces: int = 120, method: str = "bca") -> DriftEstimate:
    return DriftEstimate(value, low, high, high - low, faces, faces, method)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.001, -0.002, 0.004, Verdict.PASS),
        (0.001, -0.004, 0.006, Verdict.INCONCLUSIVE),
        (0.008, 0.004, 0.012, Verdict.INCONCLUSIVE),
        (0.008, 0.006, 0.010, Verdict.FAIL),
        (math.nan, math.nan, math.nan, Verdict.FAIL),
    ],
)
def test_a_verdict_needs_the_whole_interval(value: float, low: float, high: float, verdict: Verdict) -> None:
    assert judge(estimate(value, low, high), 0.005)[0] is verdict


def test_the_faces_needed_decide_once_they_are_there() -> None:
    drift = estimate(0.001, -0.007, 0.009)
    needed = faces_needed(drift, 0.005)
    assert needed is not None
    shrunk = (drift.high - drift.value) * math.sqrt(120 / needed)
    assert 0.9 * 0.004 <= shrunk <= 0.004
    assert f"about {needed:,} such faces" in judge(drift, 0.005)[1]
    assert faces_needed(estimate(0.005, 0, 0.01), 0.005) is None


def test_deviation_finds_the_landmark_that_moved() -> None:
    truth, reference = faces_and_guesses(5)
    moved = reference.copy()
    moved[3, 80] += (6, 8)
    found = measure_deviation(moved, reference, truth, WFLW_98)
    share = 10 / math.dist(truth[3, 60], truth[3, 72])
    assert (found.largest_face, found.largest_landmark) == (3, 80)
    assert found.by_region["mouth"].largest == pytest.approx(share)
    assert found.by_region["brows"].largest == 0
    assert found.by_landmark[80] == pytest.approx(share / 5)


@given(arrays(np.float64, (4, 2), elements=st.floats(0, 300)), arrays(np.float64, (3, 2), elements=st.floats(0, 300)))
@settings(max_examples=30, deadline=None)
def test_no_detection_is_two_faces(corners: Float64Array, others: Float64Array) -> None:
    truth, detections = (np.concatenate([low, low + 80], axis=1) for low in (corners, others))
    pairs = matched(truth, detections)
    found = pairs[np.isfinite(pairs[:, 0])]
    names = [int((detections == box).all(axis=1).argmax()) for box in found]
    boxes = np.unique(detections, axis=0)
    assert len(boxes) < len(detections) or len(names) == len(set(names))


def test_overlapping_faces_get_the_pairing_of_the_assignment_problem() -> None:
    truth = np.array([[0, 0, 100, 100], [60, 0, 160, 100.0], [300, 0, 400, 100]])
    detections = np.array([[70, 0, 170, 100], [10, 0, 110, 100.0]])
    rows, columns = linear_sum_assignment(cdist(truth, detections))
    pairs = matched(truth, detections)
    assert {(int(row), tuple(pairs[row])) for row in (0, 1)} == {
        (int(row), tuple(detections[column])) for row, column in zip(rows, columns, strict=True)
    }
    assert np.isnan(pairs[2]).all()


def test_a_detectors_boxes_go_to_the_faces_that_they_overlap() -> None:
    faces = portraits()
    found = as_detected_by(lambda _image: faces[1].bbox_xyxy[None] + 4.0, faces, Contract())
    assert np.isnan(found[0].bbox_xyxy).all()
    assert found[1].bbox_xyxy == pytest.approx(faces[1].bbox_xyxy + 4)


CONTRACT = Contract(input_size=32)


def known(name: str, points: Float32Array, contract: Contract = CONTRACT) -> LandmarkModel:
    """A network that finds the same points in every crop."""

    def predict(crops: Uint8Array) -> Float32Array:
        return np.repeat(points[None], len(crops), axis=0).astype(np.float32)

    return LandmarkModel(contract, predict, name=name, kind="onnx fp32")


@pytest.fixture(scope="module")
def points() -> Float32Array:
    return np.random.default_rng(1).uniform(0.2, 0.8, (98, 2)).astype(np.float32)


def test_models_that_agree_pass_and_one_that_gives_no_numbers_fails(points: Float32Array) -> None:
    broken = np.full_like(points, np.nan)
    models = [known("a", points), known("b", points), known("c", broken)]
    found = verify_models(models, jittered(portraits(), 3, seed=1), VerificationSettings(max_drift=0.01))
    assert [model.verdict for model in found.models] == [Verdict.REFERENCE, Verdict.PASS, Verdict.FAIL]
    assert "gives no numbers for 6 of 6 faces" in found.models[2].reason
    assert found.fell_short
    record = json.loads(json.dumps(verification_record(found), allow_nan=False))
    assert record["models"][2]["accuracy"]["all"]["nme"] is None
    assert record["models"][1]["drift"]["all"]["value"] == 0


def test_landmarks_of_shared_crops_lie_where_each_network_put_them(points: Float32Array) -> None:
    """Faces out of order, colours turned for one network, boxes of its own photograph for each face."""
    faces = jittered(portraits(), 2, seed=1)[::-1]
    rgb = known("rgb", points, CONTRACT.replace(color_order="rgb"))
    shades: dict[str, list[float]] = {"bgr": [], "rgb": []}

    def watching(model: LandmarkModel) -> LandmarkModel:
        def predict(crops: Uint8Array) -> Float32Array:
            shades[model.contract.color_order] += crops.reshape(len(crops), -1, 3).mean(axis=1)[:, 0].tolist()
            return model.predict(crops)

        return LandmarkModel(model.contract, predict)

    found = verify_models([watching(known("bgr", points)), watching(rgb)], faces, VerificationSettings())
    for row, face in enumerate(faces):
        x0, y0, x1, y1 = face.bbox_xyxy
        side = int(max(x1 - x0, y1 - y0) * 1.2)
        corner = np.floor([(x0 + x1) / 2, (y0 + y1) / 2]) - side // 2
        for model in found.models:
            assert model.landmarks[row] == pytest.approx(corner + points * side, abs=1e-2)
    assert shades["bgr"] != shades["rgb"]


@pytest.mark.parametrize(
    ("subset", "faces", "largest", "calibration", "verdict", "words"),
    [
        ((0.001, 0.0, 0.004), 20, 0.25, "100 faces of mine", Verdict.PASS, "within 1%"),
        ((0.02, 0.015, 0.03), 20, 0.1, "", Verdict.FAIL, "blur: drift"),
        ((0.02, 0.015, 0.03), 19, 0.1, "", Verdict.PASS, ""),
        ((0.005, -0.01, 0.02), 20, 0.1, "", Verdict.INCONCLUSIVE, "blur: drift"),
        ((0.001, 0.0, 0.004), 20, 0.26, "", Verdict.FAIL, "lies 0.26 eye distances from that of a"),
        ((0.001, 0.0, 0.004), 20, 0.1, "99 faces of mine", Verdict.INCONCLUSIVE, "calibrated on 99 faces"),
        ((0.001, 0.0, 0.004), 20, 0.1, "256 faces of the two bundled portraits", Verdict.INCONCLUSIVE, "on 2 faces"),
    ],
)
def test_a_file_ships_where_subsets_landmarks_and_calibration_allow_it(
    points: Float32Array,
    subset: tuple[float, float, float],
    faces: int,
    largest: float,
    calibration: str,
    verdict: Verdict,
    words: str,
) -> None:
    models = [known("a", points), known("b", points, CONTRACT.replace(calibration=calibration))]
    found = verify_models(models, portraits(), VerificationSettings(max_drift=0.01))
    model = found.models[1]
    assert model.drift is not None
    assert model.deviation is not None
    drift = {**model.drift, "blur": replace(estimate(*subset), faces=faces)}
    changed = replace(model, drift=drift, deviation=replace(model.deviation, largest=largest))
    given, reason = shipping_verdict(found, changed)
    assert given is verdict
    assert words in reason


@pytest.mark.parametrize(
    ("accept", "verdict", "fell_short"),
    [
        (False, Verdict.PASS, False),
        (False, Verdict.FAIL, True),
        (False, Verdict.INCONCLUSIVE, True),
        (True, Verdict.INCONCLUSIVE, False),
        (False, Verdict.UNJUDGED, False),
    ],
)
def test_the_exit_status_follows_the_verdict(
    accept: bool, verdict: Verdict, fell_short: bool, points: Float32Array
) -> None:
    settings = VerificationSettings(max_drift=0.01, accept_inconclusive=accept)
    found = verify_models([known("a", points), known("b", points)], portraits(), settings)
    changed = replace(found, models=(found.models[0], replace(found.models[1], verdict=verdict)))
    assert changed.fell_short is fell_short


def test_faces_of_another_scheme_are_refused(points: Float32Array) -> None:
    models = [known("a", points), known("b", points, CONTRACT.replace(landmarks=IBUG_68))]
    with pytest.raises(ValueError, match="networks of one scheme"):
        verify_models(models, portraits(), VerificationSettings())


def test_a_box_without_area_names_its_photograph(points: Float32Array) -> None:
    face = portraits()[0]
    with pytest.raises(ValueError, match=face.image.name):
        verify_models([known("a", points)], [replace(face, bbox_xyxy=np.zeros(4))], VerificationSettings())


def with_weights(face: Face, hidden: Sequence[int]) -> Face:
    """A face whose hidden points lie at (0, 0) with the weight 0."""
    weights = np.ones(98, np.float32)
    weights[list(hidden)] = 0
    assert face.landmarks is not None
    return replace(face, landmarks=np.where(weights[:, None] > 0, face.landmarks, 0), point_weights=weights)


def test_unlabelled_points_count_in_no_error(points: Float32Array) -> None:
    face = portraits()[0]
    hidden = with_weights(face, [96, 97])
    found = verify_models([known("a", points)], [hidden, face], VerificationSettings(), compare=False).models[0]
    assert face.landmarks is not None
    distances = np.diag(cdist(found.landmarks[0], face.landmarks))
    eyes = math.dist(face.landmarks[60], face.landmarks[72])
    assert found.errors.ocular[0] == pytest.approx(distances[:96].mean() / eyes, rel=1e-5)
    assert found.errors.ocular[1] == pytest.approx(distances.mean() / eyes, rel=1e-5)
    low, high = face.landmarks[:96].min(axis=0), face.landmarks[:96].max(axis=0)
    assert found.errors.diagonal[0] == pytest.approx(distances[:96].mean() / math.dist(low, high), rel=1e-5)
    assert found.error is not None
    assert found.error.by_face[0] == pytest.approx(found.errors.ocular[0])
    assert found.error.by_landmark[96] == pytest.approx(distances[96] / eyes, rel=1e-5)


def test_faces_without_normalizing_points_are_left_out_counted_and_named(points: Float32Array) -> None:
    first, second = portraits()
    assert second.landmarks is not None
    together = second.landmarks.copy()
    together[72] = together[60]
    faces = [first, with_weights(second, [60]), replace(second, landmarks=together)]
    models = [known("a", points), known("b", points + np.float32(0.01))]
    found = verify_models(models, faces, VerificationSettings(max_drift=10))
    assert found.left_out == (str(second.image), str(second.image))
    for model in found.models:
        assert (model.accuracy["all"].faces, model.accuracy["all"].misses) == (1, 0)
        assert model.accuracy["all"].nme == model.errors.ocular[0]
    drift = found.models[1].drift
    assert drift is not None
    assert drift["all"].faces == 1
    record = json.loads(json.dumps(verification_record(found), allow_nan=False))
    assert record["left_out"] == [str(second.image)] * 2
    assert np.isfinite(found.truth).all()
    with pytest.raises(ValueError, match="no face has an NME: points 60 and 72"):
        verify_models(models, faces[1:], VerificationSettings())


def test_robustness_leaves_unlabelled_points_out(points: Float32Array) -> None:
    face = portraits()[0]
    assert face.landmarks is not None
    odd = face.landmarks.copy()
    odd[96:] = face.landmarks.mean(axis=0)  # where readers place unlabelled points
    hidden = replace(face, landmarks=odd, point_weights=with_weights(face, [96, 97]).point_weights)
    right = replace(hidden, landmarks=face.landmarks)
    models = [known("a", points)]
    assert measure_robustness(models, [hidden]).clean == pytest.approx(measure_robustness(models, [right]).clean)
    assert measure_robustness(models, [with_weights(face, [60])]).faces == 0
