"""Faces with annotated landmarks: datasets, calibration sampling, pseudo-labels, evaluation.

`open_faces` opens every dataset. Faces are cropped by the runtime's own crop, and every network is the runtime's
`LandmarkModel`.
"""

from pfld_edge_calib.calibration import (
    PORTRAITS,
    as_detected,
    brightness_features,
    calibration_candidates,
    calibration_warnings,
    jittered,
    portraits,
    pose_features,
    stratified_sample,
)
from pfld_edge_calib.datasets.coco import read_coco
from pfld_edge_calib.datasets.open_faces import FaceSet, is_sharded, open_faces
from pfld_edge_calib.datasets.points_csv import read_points_csv
from pfld_edge_calib.datasets.wflw import WFLW_ATTRIBUTES, read_wflw
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.evaluation.metrics import nme_per_face
from pfld_edge_calib.face import Face
from pfld_edge_calib.find_landmarks import cut_faces, predict_landmarks, refined, true_landmarks
from pfld_edge_calib.photo import photos_in, read_photo

__all__ = [
    "PORTRAITS",
    "WFLW_ATTRIBUTES",
    "Face",
    "FaceSet",
    "FaceSetError",
    "as_detected",
    "brightness_features",
    "calibration_candidates",
    "calibration_warnings",
    "cut_faces",
    "is_sharded",
    "jittered",
    "nme_per_face",
    "open_faces",
    "photos_in",
    "portraits",
    "pose_features",
    "predict_landmarks",
    "read_coco",
    "read_photo",
    "read_points_csv",
    "read_wflw",
    "refined",
    "stratified_sample",
    "true_landmarks",
]
