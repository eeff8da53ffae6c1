"""Corruptions do what they say, to every model alike, and the annotation follows the image."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from pfld_edge_calib import Face, cut_faces, nme_per_face, portraits, read_photo
from pfld_edge_calib.evaluation.robustness import (
    CORRUPTIONS,
    FACE_SIDE,
    FacePatch,
    Robustness,
    face_patch,
    measure_robustness,
    measure_turned,
    robustness_record,
)
from pfld_edge_convert.landmark_models import EndToEndModel
from pfld_edge_runtime import Contract, FaceLandmarker, LandmarkModel, tight_box
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array

NAMED = {corruption.name: corruption for corruption in CORRUPTIONS}


def applied(name: str, patch: FacePatch, strength: float, seed: int = 0) -> FacePatch:
    return NAMED[name].apply(patch, strength, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def patch() -> FacePatch:
    face = portraits()[0]
    return face_patch(read_photo(face.image), face)


def spots(image: Uint8Array, places: Float64Array) -> Float64Array:
    """Centres of bright spots near places, found by their light; edges of pixels are whole numbers."""
    found = []
    for x, y in places:
        left, top = int(x) - 9, int(y) - 9
        window = image[top : top + 19, left : left + 19, 0].astype(np.float64)
        rows, columns = np.mgrid[: window.shape[0], : window.shape[1]]
        found.append([(window * columns).sum() / window.sum(), (window * rows).sum() / window.sum()])
        found[-1] = [found[-1][0] + left + 0.5, found[-1][1] + top + 0.5]
    return np.array(found)


@settings(max_examples=20, deadline=None)
@given(st.floats(60, 700), st.floats(-60, 60))
def test_the_truth_stays_on_the_face(side: float, degrees: float) -> None:
    """Bright spots at the landmarks are still there in a patch, whatever the face's size, and when it is turned."""
    points = np.array([[0.0, 0.0], [1.0, 0.1], [0.9, 1.0], [0.1, 0.7]]) * side + side
    photo = np.zeros((round(3 * side), round(3 * side), 3), np.uint8)
    yy, xx = np.mgrid[: photo.shape[0], : photo.shape[1]]
    light = sum(np.exp(-((xx + 0.5 - x) ** 2 + (yy + 0.5 - y) ** 2) / (2 * (side / 60) ** 2)) for x, y in points)
    photo[:] = (255 * np.clip(light, 0, 1))[..., None].astype(np.uint8)
    face = Face(portraits()[0].image, tight_box(points), points.astype(np.float32))
    whole = face_patch(photo, face)
    np.testing.assert_allclose(np.ptp(whole.landmarks, axis=0).max(), FACE_SIDE, rtol=1e-4)
    np.testing.assert_allclose(spots(whole.image, whole.landmarks), whole.landmarks, atol=0.35)
    turned = applied("rotation", whole, degrees)
    np.testing.assert_allclose(spots(turned.image, turned.landmarks), turned.landmarks, atol=0.35)
    assert tight_box(turned.landmarks).tolist() == turned.box.tolist()
    around = face_patch(photo, face, 3 * degrees)
    np.testing.assert_allclose(spots(around.image, around.landmarks), around.landmarks, atol=0.35)
    assert tight_box(around.landmarks).tolist() == around.box.tolist()


def test_blur_is_scipys(patch: FacePatch) -> None:
    found = applied("blur", patch, 0.02).image
    expected = gaussian_filter(patch.image.astype(np.float64), (0.02 * FACE_SIDE, 0.02 * FACE_SIDE, 0), mode="mirror")
    assert np.abs(found - expected).max() < 3


def test_noise_darkness_and_covers_have_their_strength(patch: FacePatch) -> None:
    grey = FacePatch(np.full_like(patch.image, 128), patch.landmarks, patch.box)
    assert applied("noise", grey, 20).image.std() == pytest.approx(20, rel=0.02)
    np.testing.assert_array_equal(applied("darkness", patch, 0.25).image, np.rint(patch.image * 0.25))
    area = np.ptp(patch.landmarks, axis=0).prod()
    for strength in NAMED["occlusion"].strengths:
        changed = (applied("occlusion", grey, strength, 3).image != 128).any(axis=2).sum()
        assert changed / area == pytest.approx(strength, rel=0.1)


def test_low_resolution_keeps_what_few_pixels_can_hold(patch: FacePatch) -> None:
    side = patch.image.shape[0]
    stripes = np.zeros_like(patch.image)
    stripes[:, ::4] = stripes[:, 1::4] = 200
    found = applied("low resolution", FacePatch(stripes, patch.landmarks, patch.box), 20).image
    assert np.abs(found[8:-8, 8:-8].astype(int) - 100).max() < 60
    smooth = cv2.GaussianBlur(patch.image, (0, 0), side / 12)
    kept = applied("low resolution", FacePatch(smooth, patch.landmarks, patch.box), 40).image
    assert np.abs(kept[16:-16, 16:-16].astype(int) - smooth[16:-16, 16:-16]).mean() < 1


def test_boxes_move_by_what_they_say(patch: FacePatch) -> None:
    side = (patch.box[2:] - patch.box[:2]).max()
    moved = applied("box shift", patch, 0.1).box - patch.box
    np.testing.assert_allclose(moved[:2], moved[2:])
    assert np.linalg.norm(moved[:2]) == pytest.approx(0.1 * side)
    scaled = applied("box size", patch, 1.25).box
    np.testing.assert_allclose(scaled[2:] - scaled[:2], 1.25 * (patch.box[2:] - patch.box[:2]))
    np.testing.assert_allclose(scaled[2:] + scaled[:2], patch.box[2:] + patch.box[:2])


def opened(name: str, landmarker: FaceLandmarker) -> LandmarkModel:
    return LandmarkModel(landmarker.contract, landmarker.predict_crops, name=name)


def test_every_network_sees_the_same_and_runs_repeat() -> None:
    landmarker, faces = FaceLandmarker(), portraits()

    def whole(photo: Uint8Array, boxes: Float32Array) -> list[Float32Array]:
        return [landmarker(photo, boxes, "rgb")]

    graph = landmarker.contract.replace(layout="HWC", output_space="image-pixels")
    located = EndToEndModel(graph, whole, name="whole")
    models = [opened("a", landmarker), opened("b", landmarker), located]
    done: list[int] = []
    found = measure_robustness(models, faces, done.append)
    assert sum(done) == found.faces == len(faces)
    for curve in found.curves:
        np.testing.assert_array_equal(curve.nmes[0], curve.nmes[1])
        np.testing.assert_allclose(curve.nmes[0], curve.nmes[2], atol=1e-6)
    again = measure_robustness(models[:1], faces)
    assert all((one.nmes[0] == two.nmes[0]).all() for one, two in zip(found.curves, again.curves, strict=True))
    worst = {curve.name: curve.nmes[0, -1] / found.clean[0] for curve in found.curves}
    assert min(worst["darkness"], worst["box shift"], worst["blur"]) > 1.1


def test_portraits_turned_by_any_angle_keep_their_nme_and_cropped_upright_they_dont() -> None:
    landmarker = FaceLandmarker()
    fixed = LandmarkModel(landmarker.contract, landmarker.predict_crops, name="upright crops")
    fixed.takes_roll = False
    found = measure_turned([landmarker.model, fixed], portraits(), angles=(60, 180, 290))
    assert (found.faces, found.curves[0].strengths) == (2, (60, 180, 290))
    assert found.curves[0].nmes[0] == pytest.approx(found.clean[0], abs=0.03)
    assert found.curves[0].nmes[1, 1] > 0.5


def test_without_corruption_the_error_is_close_to_the_photographs_own() -> None:
    landmarker, faces = FaceLandmarker(), portraits()
    clean = measure_robustness([opened("a", landmarker)], faces, corruptions=CORRUPTIONS[:1]).clean[0]
    batch = next(iter(cut_faces(faces, Contract())))
    truth = np.stack([face.landmarks for face in faces if face.landmarks is not None])
    found = batch.windows.to_image(landmarker.predict_crops(batch.crops))
    assert clean == pytest.approx(nme_per_face(found, truth, (60, 72)).mean(), abs=0.006)


def test_the_clean_error_stands_between_factors_below_and_above_1() -> None:
    found = measure_robustness([opened("a", FaceLandmarker())], portraits()[:1])
    curves = {curve.name: curve for curve in found.curves}
    labels, values = curves["box size"].with_clean(found.clean)
    assert labels == ["0.8", "0.9", "none", "1.1", "1.25"]
    assert values[0, 2] == found.clean[0]
    assert curves["darkness"].with_clean(found.clean)[0][0] == "none"
    record = robustness_record(Robustness(("a",), 0, np.array([np.nan]), found.curves))
    assert record["clean"] == [None]
    assert record["damages"][0]["nme"]["a"] == found.curves[0].nmes[0].tolist()
