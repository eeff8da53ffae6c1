"""What apps read from landmarks: head pose, open eyes and mouths, other point sets, aligned faces, confidence."""

from pfld_edge_runtime.reading.aligned_face import ARCFACE_POINTS, aligned_face, aligned_faces
from pfld_edge_runtime.reading.boxes import bounding_boxes
from pfld_edge_runtime.reading.confidence import (
    BUNDLED_CURVE,
    ConfidenceCurve,
    landmark_confidence,
    mirror_disagreement,
    predict_with_mirror,
)
from pfld_edge_runtime.reading.face_shape import FACE_SHAPE, RIGID_POINTS
from pfld_edge_runtime.reading.head_pose import HeadPose, default_camera, head_pose
from pfld_edge_runtime.reading.openness import eye_openness, mouth_openness
from pfld_edge_runtime.reading.subsets import FIVE_POINTS, IBUG_68, NEAREST_68, five_points, landmarks_68

__all__ = [
    "ARCFACE_POINTS",
    "BUNDLED_CURVE",
    "FACE_SHAPE",
    "FIVE_POINTS",
    "IBUG_68",
    "NEAREST_68",
    "RIGID_POINTS",
    "ConfidenceCurve",
    "HeadPose",
    "aligned_face",
    "aligned_faces",
    "bounding_boxes",
    "default_camera",
    "eye_openness",
    "five_points",
    "head_pose",
    "landmark_confidence",
    "landmarks_68",
    "mirror_disagreement",
    "mouth_openness",
    "predict_with_mirror",
]
