"""Proof of accuracy: figures, paired drift with intervals, deviations, and a verdict that admits when it can't tell."""

from pfld_edge_calib.proof.detected import as_detected_by
from pfld_edge_calib.proof.deviation import Deviation, RegionDeviation, measure_deviation
from pfld_edge_calib.proof.figures import Figures, figures_by_subset, measure_figures
from pfld_edge_calib.proof.found import find_landmarks
from pfld_edge_calib.proof.interval import DriftEstimate, paired_drift
from pfld_edge_calib.proof.junit import junit_xml
from pfld_edge_calib.proof.model import PhotoPredictor, ProofModel
from pfld_edge_calib.proof.record import verification_record
from pfld_edge_calib.proof.regions import landmark_regions
from pfld_edge_calib.proof.result import ModelProof, PairedDrift, Settings, Suspicion, Verdict, Verification
from pfld_edge_calib.proof.verdict import judge
from pfld_edge_calib.proof.verify import assemble, measured_record, shared_landmarks, subset_order, verify_models

__all__ = [
    "Deviation",
    "DriftEstimate",
    "Figures",
    "ModelProof",
    "PairedDrift",
    "PhotoPredictor",
    "ProofModel",
    "RegionDeviation",
    "Settings",
    "Suspicion",
    "Verdict",
    "Verification",
    "as_detected_by",
    "assemble",
    "figures_by_subset",
    "find_landmarks",
    "judge",
    "junit_xml",
    "landmark_regions",
    "measure_deviation",
    "measure_figures",
    "measured_record",
    "paired_drift",
    "shared_landmarks",
    "subset_order",
    "verification_record",
    "verify_models",
]
