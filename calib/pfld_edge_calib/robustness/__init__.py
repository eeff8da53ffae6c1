"""How the error grows as photographs get worse: the same damage for every network."""

from pfld_edge_calib.robustness.curves import Curve, Robustness, measure_robustness
from pfld_edge_calib.robustness.damages import DAMAGES, Damage
from pfld_edge_calib.robustness.patch import FACE_SIDE, FacePatch, face_patch
from pfld_edge_calib.robustness.record import robustness_record

__all__ = [
    "DAMAGES",
    "FACE_SIDE",
    "Curve",
    "Damage",
    "FacePatch",
    "Robustness",
    "face_patch",
    "measure_robustness",
    "robustness_record",
]
