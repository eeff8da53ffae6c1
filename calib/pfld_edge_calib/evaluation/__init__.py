"""Evaluation of models: accuracy, paired drift with intervals, deviations, verdicts, and corruption robustness."""

from pfld_edge_calib.detection import as_detected_by
from pfld_edge_calib.evaluation.drift import DriftEstimate, Verdict, judge, paired_drift
from pfld_edge_calib.evaluation.metrics import (
    Deviation,
    landmark_regions,
    measure_deviation,
)
from pfld_edge_calib.evaluation.predictions import FacePredictions, join_units, predict_unit
from pfld_edge_calib.evaluation.robustness import (
    CORRUPTIONS,
    FACE_SIDE,
    FacePatch,
    Robustness,
    face_patch,
    measure_robustness,
    robustness_record,
)
from pfld_edge_calib.evaluation.verification import (
    LikelyCause,
    ModelResult,
    Verification,
    VerificationSettings,
    evaluate_found,
    shipping_verdict,
    verification_record,
    verify_models,
)

__all__ = [
    "CORRUPTIONS",
    "FACE_SIDE",
    "Deviation",
    "DriftEstimate",
    "FacePatch",
    "FacePredictions",
    "LikelyCause",
    "ModelResult",
    "Robustness",
    "Verdict",
    "Verification",
    "VerificationSettings",
    "as_detected_by",
    "evaluate_found",
    "face_patch",
    "join_units",
    "judge",
    "landmark_regions",
    "measure_deviation",
    "measure_robustness",
    "paired_drift",
    "predict_unit",
    "robustness_record",
    "shipping_verdict",
    "verification_record",
    "verify_models",
]
