"""Evaluation of models: accuracy, paired drift with intervals, deviations, verdicts, and corruption robustness."""

from pfld_edge_calib.detection import as_detected_by
from pfld_edge_calib.evaluation.corruptions import CORRUPTIONS, FACE_SIDE, Corruption, FacePatch, face_patch
from pfld_edge_calib.evaluation.deviation import Deviation, RegionDeviation, landmark_regions, measure_deviation
from pfld_edge_calib.evaluation.drift import DriftEstimate, Verdict, judge, paired_drift
from pfld_edge_calib.evaluation.metrics import Accuracy, FaceErrors, accuracy, accuracy_by_subset, nme_per_face
from pfld_edge_calib.evaluation.robustness import Curve, Robustness, measure_robustness, robustness_record
from pfld_edge_calib.evaluation.units import SetPredictions, UnitPredictions, join_units, predict_unit
from pfld_edge_calib.evaluation.verification import (
    LikelyCause,
    ModelResult,
    PairedDrift,
    Verification,
    VerificationSettings,
    verification_record,
)
from pfld_edge_calib.evaluation.verify import assemble, measured_record, subset_order, verify_models
from pfld_edge_calib.landmark_model import EvaluatedModel, PhotoPredictor, find_landmarks, shared_scheme

__all__ = [
    "CORRUPTIONS",
    "FACE_SIDE",
    "Accuracy",
    "Corruption",
    "Curve",
    "Deviation",
    "DriftEstimate",
    "EvaluatedModel",
    "FaceErrors",
    "FacePatch",
    "LikelyCause",
    "ModelResult",
    "PairedDrift",
    "PhotoPredictor",
    "RegionDeviation",
    "Robustness",
    "SetPredictions",
    "UnitPredictions",
    "Verdict",
    "Verification",
    "VerificationSettings",
    "accuracy",
    "accuracy_by_subset",
    "as_detected_by",
    "assemble",
    "face_patch",
    "find_landmarks",
    "join_units",
    "judge",
    "landmark_regions",
    "measure_deviation",
    "measure_robustness",
    "measured_record",
    "nme_per_face",
    "paired_drift",
    "predict_unit",
    "robustness_record",
    "shared_scheme",
    "subset_order",
    "verification_record",
    "verify_models",
]
