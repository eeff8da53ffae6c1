"""Faces through a video: detection now and then, landmarks in every frame, ids that stay, smoothing."""

from pfld_edge_runtime.tracking.one_euro import OneEuro, OneEuroFilter
from pfld_edge_runtime.tracking.smoothing import FaceSmoother, Smoothing
from pfld_edge_runtime.tracking.tracker import FaceTracker, Landmarker

__all__ = ["FaceSmoother", "FaceTracker", "Landmarker", "OneEuro", "OneEuroFilter", "Smoothing"]
