"""Pseudo-labels: several landmark networks predict each face, and their disagreement becomes a confidence."""

from pfld_edge_calib.labelling.labeller import Labeller, LabelSettings
from pfld_edge_calib.labelling.run import label_photos, write_labels

__all__ = ["LabelSettings", "Labeller", "label_photos", "write_labels"]
