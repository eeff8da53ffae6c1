"""Geometry of landmarks: head pose, eye and mouth openness, other schemes, aligned faces, confidence."""

from pfld_edge_runtime.contract import ConfidenceCurve
from pfld_edge_runtime.geometry.confidence import landmark_confidence, mirror_disagreement, predict_with_mirror
from pfld_edge_runtime.geometry.landmarks import tight_box
from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS, HeadPose, default_camera, head_pose
from pfld_edge_runtime.geometry.wflw_points import (
    ARCFACE_POINTS,
    NEAREST_68,
    aligned_face,
    aligned_faces,
    eye_openness,
    five_points,
    landmarks_68,
    mouth_openness,
)

__all__ = [
    "ARCFACE_POINTS",
    "FACE_SHAPE",
    "NEAREST_68",
    "RIGID_POINTS",
    "ConfidenceCurve",
    "HeadPose",
    "aligned_face",
    "aligned_faces",
    "default_camera",
    "eye_openness",
    "five_points",
    "head_pose",
    "landmark_confidence",
    "landmarks_68",
    "mirror_disagreement",
    "mouth_openness",
    "predict_with_mirror",
    "tight_box",
]
