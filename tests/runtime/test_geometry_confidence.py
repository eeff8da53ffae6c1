"""Confidence: the mirror image, the curve of the contract, and WFLW faces with known landmarks."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import mannwhitneyu, spearmanr

from pfld_edge_calib import Face, nme_per_face, open_faces, portraits, read_photo
from pfld_edge_runtime import (
    BUNDLED_MODEL,
    FAST_MODEL,
    WFLW_98,
    ConfidenceCurve,
    Contract,
    FaceLandmarker,
    FaceTracker,
    ImageError,
    ModelContractError,
    landmark_confidence,
    mirror_disagreement,
    predict_with_mirror,
    read_faces,
)
from pfld_edge_runtime.arrays import Uint8Array

Build = Callable[..., Path]
CURVE = ConfidenceCurve(middle=0.0506, steepness=4.28)
BOXES = [[10, 10, 50, 55], [-30, -5, 20, 40], [60, 40, 300, 200]]


@given(st.floats(1e-6, 1e6), st.floats(0.001, 1), st.floats(0.1, 20))
def test_the_curve_is_logistic_in_the_logarithm(disagreement: float, middle: float, steepness: float) -> None:
    found = ConfidenceCurve(middle, steepness)(np.array([disagreement]))
    np.testing.assert_allclose(found, expit(-steepness * np.log(disagreement / middle)), rtol=1e-4, atol=1e-30)


def test_the_curve_falls_from_one_to_zero_and_is_half_in_the_middle() -> None:
    found = CURVE(np.array([0, CURVE.middle, np.inf]))
    np.testing.assert_allclose(found, (1, 0.5, 0), atol=1e-6)
    assert found.dtype == np.float32


def test_disagreement_is_mean_distance_over_eye_distance() -> None:
    landmarks = np.random.default_rng(0).uniform(0, 100, (2, 98, 2)).astype(np.float32)
    mirrored = landmarks + np.array([3, 4], np.float32)
    eyes = np.linalg.norm(landmarks[:, 60] - landmarks[:, 72], axis=1)
    np.testing.assert_allclose(mirror_disagreement(landmarks, mirrored, WFLW_98), 5 / eyes, rtol=1e-5)
    sure = landmark_confidence(landmarks, landmarks, Contract(confidence_curve=CURVE))
    np.testing.assert_array_equal(sure, (1, 1))
    landmarks[0, 72] = landmarks[0, 60]
    assert mirror_disagreement(landmarks, mirrored, WFLW_98)[0] == np.inf


@pytest.mark.parametrize("batch", ["n", 1])
def test_the_second_row_is_the_mirrored_photograph_mapped_back(
    build: Build, contract: Contract, photo: Uint8Array, batch: int | str
) -> None:
    """A box of whole even pixels, so that the photograph's mirror image cuts the very mirror image of the crop."""
    landmarker = FaceLandmarker(build(contract, batch=batch))
    box = np.array([20, 10, 60, 50])
    found, mirrored = predict_with_mirror(landmarker, photo, [box])
    np.testing.assert_allclose(found, landmarker(photo, [box]), atol=1e-3)
    flipped = landmarker(np.ascontiguousarray(photo[:, ::-1]), [[80 - 60, 10, 80 - 20, 50]])
    expected = (flipped * (-1, 1) + (80, 0))[:, list(WFLW_98.mirror)]
    np.testing.assert_allclose(mirrored, expected, atol=1e-2)


def test_each_network_has_the_curve_of_its_own_contract(build: Build, contract: Contract, photo: Uint8Array) -> None:
    plain = FaceLandmarker(build(contract))
    with pytest.raises(
        ModelContractError, match=r"'tiny' has no confidence_curve.*benchmarks/confidence\.py"
    ) as caught:
        read_faces(plain, photo, BOXES, confidence=True)
    assert "\n" not in str(caught.value)
    given = read_faces(plain, photo, BOXES, confidence=True, curve=CURVE).confidences
    assert np.isnan(read_faces(plain, photo, BOXES).landmark_confidence).all()  # it has no heat maps
    carried = FaceLandmarker(build(contract.replace(confidence_curve=CURVE)))
    np.testing.assert_array_equal(read_faces(carried, photo, BOXES, confidence=True).confidences, given)
    fast, default = (FaceLandmarker(path).contract.confidence_curve for path in (FAST_MODEL, BUNDLED_MODEL))
    assert None not in (fast, default)
    assert fast != default


def test_confidence_changes_no_landmark_and_fills_the_record(
    build: Build, contract: Contract, photo: Uint8Array
) -> None:
    landmarker = FaceLandmarker(build(contract.replace(confidence_curve=CURVE)))
    scored = np.column_stack([BOXES, [0.9, 0.8, 0.7]])
    plain, sure = read_faces(landmarker, photo, scored), read_faces(landmarker, photo, scored, confidence=True)
    np.testing.assert_array_equal(plain.landmarks, landmarker(photo, BOXES))
    np.testing.assert_allclose(sure.landmarks, plain.landmarks, atol=1e-3)
    assert np.isnan(plain.confidences).all()
    assert ((sure.confidences >= 0) & (sure.confidences <= 1)).all()
    np.testing.assert_allclose(sure.scores, (0.9, 0.8, 0.7), rtol=1e-6)
    np.testing.assert_array_equal(sure.boxes, BOXES)
    assert (sure.image_size, list(sure.ids), sure.scheme) == ((80, 60), [-1, -1, -1], contract.landmarks)


@pytest.mark.parametrize("confidence", [False, True])
def test_no_boxes_give_no_faces(build: Build, contract: Contract, photo: Uint8Array, confidence: bool) -> None:
    faces = read_faces(FaceLandmarker(build(contract)), photo, [], confidence=confidence, curve=CURVE)
    assert (len(faces), faces.landmarks.shape, faces.confidences.shape) == (0, (0, 98, 2), (0,))


def test_colour_orders_give_one_confidence_and_others_are_refused(build: Build, photo: Uint8Array) -> None:
    landmarker = FaceLandmarker(build(Contract(input_size=16, confidence_curve=CURVE)))
    rgb = read_faces(landmarker, photo, BOXES, "rgb", confidence=True)
    bgr = read_faces(landmarker, photo[:, :, ::-1], BOXES, "bgr", confidence=True)
    np.testing.assert_array_equal(rgb.confidences, bgr.confidences)
    with pytest.raises(ImageError, match="color"):
        predict_with_mirror(landmarker, photo, BOXES, "hsv")


def test_a_portrait_is_trusted_and_its_scrambled_pixels_are_not() -> None:
    landmarker = FaceLandmarker()
    for portrait in portraits():
        image = read_photo(portrait.image)
        assert read_faces(landmarker, image, portrait.bbox_xyxy, "bgr", confidence=True).confidences[0] > 0.8
        x0, y0, x1, y1 = portrait.bbox_xyxy.astype(int)
        face = image[y0:y1, x0:x1].reshape(-1, 3)
        noise = np.random.default_rng(0).permutation(face).reshape(y1 - y0, x1 - x0, 3)
        blurred = cv2.GaussianBlur(noise, (0, 0), 6)
        assert read_faces(landmarker, blurred, [0, 0, x1 - x0, y1 - y0], "bgr", confidence=True).confidences[0] < 0.5


def test_confidence_orders_wflws_test_faces_by_error_and_promises_what_comes(shared: Path) -> None:
    landmarker = FaceLandmarker()
    # Of the first 120 too few have a large error.
    faces = [face for name in ("WFLW", "WFLW_more") for face in open_faces(shared / "data" / name).load()]

    def confidence(face: Face) -> tuple[float, float]:
        found = read_faces(landmarker, read_photo(face.image), face.bbox_xyxy, "bgr", confidence=True)
        assert face.landmarks is not None
        return float(found.confidences[0]), float(nme_per_face(found.landmarks, face.landmarks[None], (60, 72))[0])

    promised, nme = np.array([confidence(face) for face in faces]).T
    good = nme < 0.1
    area = mannwhitneyu(promised[good], promised[~good]).statistic / (good.sum() * (~good).sum())
    assert area > 0.9
    assert spearmanr(promised, nme)[0] < -0.6
    assert promised.mean() == pytest.approx(good.mean(), abs=0.12)
    assert good[promised > 0.8].mean() > 0.9


@pytest.mark.parametrize("model", [BUNDLED_MODEL, FAST_MODEL])
def test_a_bundled_model_tells_how_good_each_point_is(model: Path) -> None:
    landmarker, face = FaceLandmarker(model), portraits()[0]
    photo, box = read_photo(face.image), [[173, 157, 354, 333]]
    whole = read_faces(landmarker, photo, box, "bgr").landmark_confidence
    assert whole.shape == (1, 98)
    assert whole.mean() > 0.8
    photo[245:333, 173:354] = 0  # the lower half
    covered = read_faces(landmarker, photo, box, "bgr").landmark_confidence
    assert covered[0, 76:96].mean() < covered[0, 33:51].mean()
    assert read_faces(landmarker, photo, [], "bgr").landmark_confidence.shape == (0, 98)


def test_the_tracker_gives_the_confidence_of_each_frame() -> None:
    landmarker, photo = FaceLandmarker(), read_photo(portraits()[0].image)
    tracker = FaceTracker(lambda _: [[173, 157, 354, 333]], landmarker)
    photo_2 = np.ascontiguousarray(np.roll(photo, 3, axis=1))
    for frame in (photo, photo_2):
        faces = tracker(frame, color="bgr")
        expected = landmarker.with_confidence(frame, faces.boxes, "bgr")[1]
        np.testing.assert_allclose(faces.landmark_confidence, expected, rtol=1e-3)
