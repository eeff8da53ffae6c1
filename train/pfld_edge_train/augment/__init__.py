"""Augmentation on the fly: a plan of random numbers, carried out with OpenCV or torch."""

from pfld_edge_train.augment.on_cpu import render_on_cpu
from pfld_edge_train.augment.on_device import render_on_device
from pfld_edge_train.augment.plan import AugmentPlan, Change, draw_plan, take_rows

__all__ = ["AugmentPlan", "Change", "draw_plan", "render_on_cpu", "render_on_device", "take_rows"]
