"""Augmentation on the fly: a plan of random numbers, rendered with OpenCV."""

from pfld_edge_train.augment.plan import AugmentPlan, Change, draw_plan, take_rows
from pfld_edge_train.augment.render import render

__all__ = ["AugmentPlan", "Change", "draw_plan", "render", "take_rows"]
