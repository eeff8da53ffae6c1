"""The published networks by the published protocol, to the digit: our figures, and a plain reimplementation's."""

import math
import os
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from pfld_edge_calib import Face, open_faces
from pfld_edge_calib.evaluation import FacePredictions, VerificationSettings, evaluate_found, verify_models
from pfld_edge_calib.find_landmarks import find_landmarks, true_landmarks
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_runtime import LandmarkModel

SHARED = os.environ.get("PFLD_EDGE_SHARED")
pytestmark = pytest.mark.skipif(SHARED is None, reason="PFLD_EDGE_SHARED is not set: no WFLW faces, no published files")

# What the reference project's protocol gives, with OpenCV's crop.
PUBLISHED = {
    "PFLD_GhostOne_112_1_opt_sim.onnx": 0.05408,
    "PFLD_GhostNet_112_1_opt_sim.onnx": 0.05483,
    "PFLD_GhostNet_Slim_112_1_opt_sim.onnx": 0.05458,
}


@cache
def faces() -> tuple[Face, ...]:
    return tuple(open_faces(Path(str(SHARED)) / "data/WFLW").load())


def published(name: str) -> Path:
    return Path(str(SHARED)) / "models/reference" / name


@cache
def opencv_crops() -> list[tuple[NDArray[np.uint8], NDArray[np.float64], int]]:
    """Cut as the reference project's evaluation does: padded photograph, slice, `cv2.resize`; with corner and side."""
    cut = []
    for face in faces():
        assert face.landmarks is not None
        photo = cv2.imread(str(face.image))
        height, width = photo.shape[:2]
        low, high = face.landmarks.min(axis=0).astype(int), face.landmarks.max(axis=0).astype(int) + 1
        side = int(max(high - low) * 1.2)
        x, y = ((low + high) // 2 - side // 2).tolist()
        edges = max(0, -y), max(0, y + side - height), max(0, -x), max(0, x + side - width)
        padded = cv2.copyMakeBorder(photo, *edges, cv2.BORDER_CONSTANT, value=0)
        square = padded[y + edges[0] : y + edges[0] + side, x + edges[2] : x + edges[2] + side]
        cut.append((np.asarray(cv2.resize(square, (112, 112)), np.uint8), np.array([x, y], float), side))
    return cut


@cache
def by_opencv(name: str) -> NDArray[np.float32]:
    """``(N, 98, 2)`` pixels, by OpenCV and onnxruntime alone."""
    session, found = onnxruntime.InferenceSession(str(published(name))), []
    for crop, corner, side in opencv_crops():
        blob = ((crop.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
        output = session.run(None, {session.get_inputs()[0].name: blob})[0]
        found.append(output.reshape(98, 2) * side + corner)
    return np.array(found, np.float32)


@cache
def opened(name: str) -> LandmarkModel:
    return open_landmark_model(published(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_of_the_published_protocol_hold_to_five_digits(name: str) -> None:
    predictions = FacePredictions(
        tuple(str(face.image) for face in faces()),
        tuple(face.attributes for face in faces()),
        np.stack([face.bbox_xyxy for face in faces()]),
        true_landmarks(faces(), opened(name).contract),
        (by_opencv(name),),
    )
    found = evaluate_found([opened(name)], predictions, VerificationSettings(), compare=False).models[0]
    assert round(found.accuracy["all"].nme, 5) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_agree_with_a_plain_reimplementation(name: str) -> None:
    record = verify_models([opened(name)], faces(), VerificationSettings(), compare=False)
    model, errors = record.models[0], []
    for face, points in zip(faces(), model.landmarks, strict=True):
        assert face.landmarks is not None
        eyes = math.dist(face.landmarks[60].tolist(), face.landmarks[72].tolist())
        errors.append(float(np.diag(cdist(points, face.landmarks)).mean()) / eyes)
    thresholds = np.linspace(0, 0.1, 100_001)
    curve = np.searchsorted(np.sort(errors), thresholds, side="right") / len(errors)
    every = model.accuracy["all"]
    assert every.nme == pytest.approx(np.mean(errors), abs=1e-9)
    assert every.failure_rate_08 == sum(error > 0.08 for error in errors) / 120
    assert every.failure_rate_10 == sum(error > 0.1 for error in errors) / 120
    assert every.auc_10 == pytest.approx(np.trapezoid(curve, thresholds) / 0.1, abs=2e-5)
    for subset in ("largepose", "expression", "illumination", "makeup", "occlusion", "blur"):
        mine = [error for error, face in zip(errors, faces(), strict=True) if subset in face.attributes]
        assert model.accuracy[subset].faces == len(mine)
        assert model.accuracy[subset].nme == pytest.approx(np.mean(mine), abs=1e-9)


def test_networks_side_by_side_find_what_each_finds_alone() -> None:
    alone = [find_landmarks([opened(name)], faces()[:20])[0] for name in PUBLISHED]
    together = find_landmarks([opened(name) for name in PUBLISHED], faces()[:20])
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
