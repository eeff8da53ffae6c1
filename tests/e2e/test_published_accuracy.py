"""The published networks by the published protocol, to the digit: with OpenCV's crop and ours, imported, converted."""

import math
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from scipy.spatial.distance import cdist

from pfld_edge_calib import Face, nme_per_face, open_faces, predict_landmarks, true_landmarks
from pfld_edge_calib.evaluation.predictions import FacePredictions
from pfld_edge_calib.evaluation.verification import ModelResult, VerificationSettings, evaluate_found, verify_models
from pfld_edge_calib.find_landmarks import find_landmarks
from pfld_edge_convert.calibration import sample_crops
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_convert.model_file import checkpoint_contract
from pfld_edge_convert.onnx_import import import_onnx
from pfld_edge_convert.pipeline import convert
from pfld_edge_runtime import LandmarkModel, crop_windows
from pfld_edge_runtime.arrays import Float32Array
from pfld_edge_train.checkpoint import load_checkpoint, load_model, save_checkpoint

GHOSTONE = "PFLD_GhostOne_112_1_opt_sim.onnx"
# What the reference project's protocol gives, with OpenCV's crop.
PUBLISHED = {
    GHOSTONE: 0.05408,
    "PFLD_GhostNet_112_1_opt_sim.onnx": 0.05483,
    "PFLD_GhostNet_Slim_112_1_opt_sim.onnx": 0.05458,
}


@cache
def wflw(shared: Path) -> tuple[Face, ...]:
    return tuple(open_faces(shared / "data/WFLW").load())


@cache
def opened(shared: Path, name: str) -> LandmarkModel:
    return open_landmark_model(shared / "models/reference" / name)


@cache
def measured(shared: Path, name: str) -> ModelResult:
    return verify_models([opened(shared, name)], wflw(shared), VerificationSettings(), compare=False).models[0]


def nme(shared: Path, network: LandmarkModel) -> float:
    truth = true_landmarks(wflw(shared), network.contract)
    return float(nme_per_face(predict_landmarks(network, wflw(shared)), truth, (60, 72)).mean())


def by_opencv(path: Path, faces: tuple[Face, ...]) -> Float32Array:
    """``(N, 98, 2)`` pixels, as the reference project's evaluation finds them: padded photograph, slice, `resize`."""
    session, found = onnxruntime.InferenceSession(str(path)), []
    for face in faces:
        assert face.landmarks is not None
        photo = cv2.imread(str(face.image))
        height, width = photo.shape[:2]
        low, high = face.landmarks.min(axis=0).astype(int), face.landmarks.max(axis=0).astype(int) + 1
        side = int(max(high - low) * 1.2)
        x, y = ((low + high) // 2 - side // 2).tolist()
        edges = max(0, -y), max(0, y + side - height), max(0, -x), max(0, x + side - width)
        padded = cv2.copyMakeBorder(photo, *edges, cv2.BORDER_CONSTANT, value=0)
        square = padded[y + edges[0] : y + edges[0] + side, x + edges[2] : x + edges[2] + side]
        crop = np.asarray(cv2.resize(square, (112, 112)), np.float32)
        blob = ((crop / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
        output = session.run(None, {session.get_inputs()[0].name: blob})[0]
        found.append(output.reshape(98, 2) * side + np.array([x, y], float))
    return np.array(found, np.float32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_of_the_published_protocol_hold_to_five_digits(shared: Path, name: str) -> None:
    faces = wflw(shared)
    predictions = FacePredictions(
        tuple(str(face.image) for face in faces),
        tuple(face.attributes for face in faces),
        np.stack([face.bbox_xyxy for face in faces]),
        true_landmarks(faces, opened(shared, name).contract),
        (by_opencv(shared / "models/reference" / name, faces),),
    )
    found = evaluate_found([opened(shared, name)], predictions, VerificationSettings(), compare=False).models[0]
    assert round(found.accuracy["all"].nme, 5) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_agree_with_a_plain_reimplementation_and_with_opencvs_crop(shared: Path, name: str) -> None:
    model, errors = measured(shared, name), []
    for face, points in zip(wflw(shared), model.landmarks, strict=True):
        assert face.landmarks is not None
        eyes = math.dist(face.landmarks[60].tolist(), face.landmarks[72].tolist())
        errors.append(float(np.diag(cdist(points, face.landmarks)).mean()) / eyes)
    thresholds = np.linspace(0, 0.1, 100_001)
    curve = np.searchsorted(np.sort(errors), thresholds, side="right") / len(errors)
    every = model.accuracy["all"]
    assert every.nme == pytest.approx(PUBLISHED[name], abs=1e-4)
    assert every.nme == pytest.approx(np.mean(errors), abs=1e-9)
    assert every.failure_rate_08 == sum(error > 0.08 for error in errors) / 120
    assert every.failure_rate_10 == sum(error > 0.1 for error in errors) / 120
    assert every.auc_10 == pytest.approx(np.trapezoid(curve, thresholds) / 0.1, abs=2e-5)
    for subset in ("largepose", "expression", "illumination", "makeup", "occlusion", "blur"):
        mine = [error for error, face in zip(errors, wflw(shared), strict=True) if subset in face.attributes]
        assert model.accuracy[subset].faces == len(mine)
        assert model.accuracy[subset].nme == pytest.approx(np.mean(mine), abs=1e-9)


def test_the_imported_and_converted_ghostone_keeps_its_accuracy(shared: Path, tmp_path: Path) -> None:
    path, file = shared / "models/reference" / GHOSTONE, tmp_path / "imported.pth"
    save_checkpoint(file, import_onnx(path))
    model, checkpoint = load_model(file)
    contract, file = checkpoint_contract(checkpoint), tmp_path / "converted.onnx"
    convert(model, contract, file, sample_crops(contract))
    assert file.stat().st_size < 0.8 * path.stat().st_size
    expected = measured(shared, GHOSTONE).accuracy["all"].nme
    assert nme(shared, open_landmark_model(file)) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", ["pfld-ghostnet", "pfld-ghostnet-slim"])
def test_other_imported_networks_answer_as_their_files(shared: Path, kind: str, tmp_path: Path) -> None:
    """GhostOne: tests/convert/test_import_onnx.py; the conversion is checked against torch by `convert` itself."""
    name, file = f"PFLD_GhostNet{'_Slim' * kind.endswith('slim')}_112_1_opt_sim.onnx", tmp_path / "imported.pth"
    save_checkpoint(file, import_onnx(shared / "models/reference" / name))
    assert load_checkpoint(file).model.kind == kind
    found, expected = predict_landmarks(open_landmark_model(file), wflw(shared)), measured(shared, name).landmarks
    sides = crop_windows(np.stack([face.bbox_xyxy for face in wflw(shared)]), 1.2).sizes
    assert (np.abs(found - expected) / sides[:, None, None]).max() < 1e-5


def test_feeding_rgb_to_a_bgr_network_costs_a_tenth_of_accuracy(shared: Path) -> None:
    """The reference project's own inference script does this; our contract makes it impossible by accident."""
    network = opened(shared, GHOSTONE)
    swapped = LandmarkModel(network.contract, lambda crops: network.predict(crops[:, :, :, ::-1]))
    assert nme(shared, swapped) > 1.1 * measured(shared, GHOSTONE).accuracy["all"].nme


def test_networks_side_by_side_find_what_each_finds_alone(shared: Path) -> None:
    models, faces = [opened(shared, name) for name in PUBLISHED], wflw(shared)[:20]
    for model, together in zip(models, find_landmarks(models, faces), strict=True):
        np.testing.assert_allclose(find_landmarks([model], faces)[0], together, atol=1e-3)
