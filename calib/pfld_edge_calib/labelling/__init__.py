"""Labels for unlabelled faces: several landmark networks vote, and their disagreement says how far to trust them."""

from pfld_edge_calib.errors import LabellingError
from pfld_edge_calib.labelling.consensus import TYPICAL_ERROR, Consensus, consensus
from pfld_edge_calib.labelling.identity import run_identity
from pfld_edge_calib.labelling.labeller import (
    DROP_REASONS,
    BoxFinder,
    FaceLabel,
    Labeller,
    LabelSettings,
    PhotoLabels,
)
from pfld_edge_calib.labelling.looks import gather_looks
from pfld_edge_calib.labelling.photographs import LabelTask, boxes_by_photo, label_tasks, photos_of
from pfld_edge_calib.labelling.process_pool import ordered_results, usable_cores
from pfld_edge_calib.labelling.progress_file import DonePhoto, ProgressFile
from pfld_edge_calib.labelling.run import LabellingReport, label_photos, write_labels
from pfld_edge_calib.labelling.teachers import Teacher, shared_scheme

__all__ = [
    "DROP_REASONS",
    "TYPICAL_ERROR",
    "BoxFinder",
    "Consensus",
    "DonePhoto",
    "FaceLabel",
    "LabelSettings",
    "LabelTask",
    "Labeller",
    "LabellingError",
    "LabellingReport",
    "PhotoLabels",
    "ProgressFile",
    "Teacher",
    "boxes_by_photo",
    "consensus",
    "gather_looks",
    "label_photos",
    "label_tasks",
    "ordered_results",
    "photos_of",
    "run_identity",
    "shared_scheme",
    "usable_cores",
    "write_labels",
]
