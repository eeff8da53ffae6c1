"""Faces with annotated landmarks: datasets, calibration sampling, pseudo-labels, evaluation.

`open_faces` opens every dataset. Faces are cropped by the runtime's own crop, and every network is the runtime's
`LandmarkModel`.
"""

from pfld_edge_calib.calibration import PORTRAITS, as_detected, jittered, portraits
from pfld_edge_calib.datasets.coco import read_coco
from pfld_edge_calib.datasets.open_faces import open_faces
from pfld_edge_calib.datasets.points_csv import read_points_csv
from pfld_edge_calib.datasets.pts import read_pts
from pfld_edge_calib.datasets.wflw import read_wflw
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.evaluation.metrics import nme_per_face
from pfld_edge_calib.face import Face
from pfld_edge_calib.find_landmarks import cut_faces, predict_landmarks, refined, true_landmarks
from pfld_edge_calib.photo import read_photo

__all__ = [
    "PORTRAITS",
    "Face",
    "FaceSetError",
    "as_detected",
    "cut_faces",
    "jittered",
    "nme_per_face",
    "open_faces",
    "portraits",
    "predict_landmarks",
    "read_coco",
    "read_photo",
    "read_points_csv",
    "read_pts",
    "read_wflw",
    "refined",
    "true_landmarks",
]
