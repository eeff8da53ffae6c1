"""Losses on landmarks, in pixels of the network's input, and what weighs them."""

from pfld_edge_train.losses.face_weights import attribute_frequencies
from pfld_edge_train.losses.kinds import point_loss
from pfld_edge_train.losses.landmark_loss import LandmarkLoss
from pfld_edge_train.losses.norms import l1_loss, l2_loss, smooth_l1_loss
from pfld_edge_train.losses.wing import adaptive_wing_loss, soft_wing_loss, wing_loss

__all__ = [
    "LandmarkLoss",
    "adaptive_wing_loss",
    "attribute_frequencies",
    "l1_loss",
    "l2_loss",
    "point_loss",
    "smooth_l1_loss",
    "soft_wing_loss",
    "wing_loss",
]
