"""Labels for unlabelled faces: several landmark networks vote, and their disagreement says how far to trust them."""

from pfld_edge_calib.errors import LabellingError
from pfld_edge_calib.labelling.consensus import TYPICAL_ERROR, Consensus, consensus
from pfld_edge_calib.labelling.identity import run_identity, tasks_identity
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
from pfld_edge_calib.labelling.progress_file import DonePhoto, ProgressFile
from pfld_edge_calib.labelling.run import LabellingReport, label_photos, write_labels
from pfld_edge_calib.labelling.teachers import Teacher, shared_scheme
from pfld_edge_calib.labelling.units import LABEL_UNIT, LabelUnit, TaskUnit, label_units, shard_units, task_units
from pfld_edge_calib.process_pool import ordered_results, usable_cores

__all__ = [
    "DROP_REASONS",
    "LABEL_UNIT",
    "TYPICAL_ERROR",
    "BoxFinder",
    "Consensus",
    "DonePhoto",
    "FaceLabel",
    "LabelSettings",
    "LabelTask",
    "LabelUnit",
    "Labeller",
    "LabellingError",
    "LabellingReport",
    "PhotoLabels",
    "ProgressFile",
    "TaskUnit",
    "Teacher",
    "boxes_by_photo",
    "consensus",
    "gather_looks",
    "label_photos",
    "label_tasks",
    "label_units",
    "ordered_results",
    "photos_of",
    "run_identity",
    "shard_units",
    "shared_scheme",
    "task_units",
    "tasks_identity",
    "usable_cores",
    "write_labels",
]
