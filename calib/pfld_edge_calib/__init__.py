"""Faces with known answers: readers, crops through the runtime's own crop, metrics."""

from pfld_edge_calib.calibration import as_detected, calibration_candidates, calibration_faces, jittered
from pfld_edge_calib.coco import read_coco
from pfld_edge_calib.detect import detected_faces, refined
from pfld_edge_calib.doubts import calibration_doubts
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.evaluate import CropPredictor, predict_landmarks, true_landmarks
from pfld_edge_calib.face import Face, tight_box
from pfld_edge_calib.face_crops import FaceCrops, cut_faces
from pfld_edge_calib.face_set import labelled_faces
from pfld_edge_calib.metrics import Accuracy, accuracy, accuracy_by_subset, nme_per_face
from pfld_edge_calib.photo import photos_in, read_photo
from pfld_edge_calib.point_maps import as_wflw_98
from pfld_edge_calib.points_csv import read_points_csv
from pfld_edge_calib.portraits import PORTRAITS, portraits
from pfld_edge_calib.stratify import even_choice, light, pose
from pfld_edge_calib.wflw import WFLW_ATTRIBUTES, read_wflw, read_wflw_list

__all__ = [
    "PORTRAITS",
    "WFLW_ATTRIBUTES",
    "Accuracy",
    "CropPredictor",
    "Face",
    "FaceCrops",
    "FaceSetError",
    "accuracy",
    "accuracy_by_subset",
    "as_detected",
    "as_wflw_98",
    "calibration_candidates",
    "calibration_doubts",
    "calibration_faces",
    "cut_faces",
    "detected_faces",
    "even_choice",
    "jittered",
    "labelled_faces",
    "light",
    "nme_per_face",
    "photos_in",
    "portraits",
    "pose",
    "predict_landmarks",
    "read_coco",
    "read_photo",
    "read_points_csv",
    "read_wflw",
    "read_wflw_list",
    "refined",
    "tight_box",
    "true_landmarks",
]
