"""Pseudo-labels: several landmark networks predict each face, and their disagreement becomes a confidence."""

from pfld_edge_calib.errors import LabellingError
from pfld_edge_calib.labelling.consensus import Consensus, augmented_predictions, consensus
from pfld_edge_calib.labelling.labeller import (
    DROP_REASONS,
    BoxFinder,
    Labeller,
    LabelSettings,
)
from pfld_edge_calib.labelling.run import (
    LabellingReport,
    ProgressFile,
    label_photos,
    run_identity,
    write_labels,
)
from pfld_edge_calib.labelling.tasks import (
    LABEL_UNIT,
    LabelTask,
    LabelUnit,
    ShardUnit,
    boxes_by_photo,
    label_tasks,
    photos_of,
    task_units,
    tasks_identity,
)

__all__ = [
    "DROP_REASONS",
    "LABEL_UNIT",
    "BoxFinder",
    "Consensus",
    "LabelSettings",
    "LabelTask",
    "LabelUnit",
    "Labeller",
    "LabellingError",
    "LabellingReport",
    "ProgressFile",
    "ShardUnit",
    "augmented_predictions",
    "boxes_by_photo",
    "consensus",
    "label_photos",
    "label_tasks",
    "photos_of",
    "run_identity",
    "task_units",
    "tasks_identity",
    "write_labels",
]
