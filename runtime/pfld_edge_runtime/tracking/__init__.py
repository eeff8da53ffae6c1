"""Face tracking in video: detection in some frames, landmarks in all, stable ids, smoothing."""

from pfld_edge_runtime.tracking.smoothing import FaceSmoother, OneEuro, OneEuroFilter, Smoothing
from pfld_edge_runtime.tracking.tracker import FaceTracker, Landmarker

__all__ = ["FaceSmoother", "FaceTracker", "Landmarker", "OneEuro", "OneEuroFilter", "Smoothing"]
