"""Evaluation of models: accuracy, paired drift with intervals, deviations, verdicts, and corruption robustness."""

from pfld_edge_calib.evaluation.drift import DriftEstimate, Verdict, judge, paired_drift
from pfld_edge_calib.evaluation.metrics import Deviation
from pfld_edge_calib.evaluation.predictions import FacePredictions, join_units, predict_unit
from pfld_edge_calib.evaluation.robustness import Robustness, measure_robustness, measure_turned, robustness_record
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
from pfld_edge_calib.find_landmarks import as_detected_by

__all__ = [
    "Deviation",
    "DriftEstimate",
    "FacePredictions",
    "LikelyCause",
    "ModelResult",
    "Robustness",
    "Verdict",
    "Verification",
    "VerificationSettings",
    "as_detected_by",
    "evaluate_found",
    "join_units",
    "judge",
    "measure_robustness",
    "measure_turned",
    "paired_drift",
    "predict_unit",
    "robustness_record",
    "shipping_verdict",
    "verification_record",
    "verify_models",
]
