"""The published networks through our own crop and our own conversion: their accuracy, to the digit."""

import os
from functools import cache
from pathlib import Path

import pytest

from pfld_edge_calib import Face, nme_per_face, open_faces, predict_landmarks, true_landmarks
from pfld_edge_convert.calibration import sample_crops
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_convert.model_file import checkpoint_contract
from pfld_edge_convert.onnx_import import import_onnx
from pfld_edge_convert.pipeline import convert
from pfld_edge_runtime import LandmarkModel
from pfld_edge_train.checkpoint import load_model, save_checkpoint

SHARED = os.environ.get("PFLD_EDGE_SHARED")
pytestmark = pytest.mark.skipif(SHARED is None, reason="PFLD_EDGE_SHARED is not set: no WFLW faces, no published files")

# Measured with OpenCV's own crop by the published protocol.
PUBLISHED = {
    "PFLD_GhostOne_112_1_opt_sim.onnx": 0.05408,
    "PFLD_GhostNet_112_1_opt_sim.onnx": 0.05483,
    "PFLD_GhostNet_Slim_112_1_opt_sim.onnx": 0.05458,
}


@cache
def wflw_faces() -> tuple[Face, ...]:
    return tuple(open_faces(Path(str(SHARED)) / "data/WFLW").load())


@cache
def nme(path: Path) -> float:
    network = open_landmark_model(path)
    truth = true_landmarks(wflw_faces(), network.contract)
    predicted = predict_landmarks(network, wflw_faces())
    return float(nme_per_face(predicted, truth, network.contract.landmarks.normalizing_points).mean())


def published(name: str) -> Path:
    return Path(str(SHARED)) / "models/reference" / name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_score_as_measured_with_opencv(name: str) -> None:
    assert nme(published(name)) == pytest.approx(PUBLISHED[name], abs=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_imported_and_converted_networks_keep_their_accuracy(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "imported.pth", import_onnx(published(name)))
    model, checkpoint = load_model(tmp_path / "imported.pth")
    contract = checkpoint_contract(checkpoint)
    convert(model, contract, tmp_path / "converted.onnx", sample_crops(contract))
    assert nme(tmp_path / "converted.onnx") == pytest.approx(nme(published(name)), abs=2e-5)
    if "GhostOne" in name:
        assert (tmp_path / "converted.onnx").stat().st_size < 0.8 * published(name).stat().st_size


def test_feeding_rgb_to_a_bgr_network_costs_a_tenth_of_accuracy() -> None:
    """The reference project's own inference script does this; our contract makes it impossible by accident."""
    path = published("PFLD_GhostOne_112_1_opt_sim.onnx")
    network = open_landmark_model(path)
    truth = true_landmarks(wflw_faces(), network.contract)
    swapped = predict_landmarks(
        LandmarkModel(network.contract, lambda crops: network.predict(crops[:, :, :, ::-1])), wflw_faces()
    )
    wrong = nme_per_face(swapped, truth, network.contract.landmarks.normalizing_points).mean()
    assert wrong > 1.1 * nme(path)
