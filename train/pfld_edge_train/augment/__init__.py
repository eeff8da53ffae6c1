"""Augmentation on the fly: chance decides about numbers, then OpenCV or torch carries them out."""

from pfld_edge_train.augment.on_cpu import render_on_cpu
from pfld_edge_train.augment.on_device import render_on_device
from pfld_edge_train.augment.plan import Change, Plan, draw_plan
from pfld_edge_train.augment.rows import take_rows

__all__ = ["Change", "Plan", "draw_plan", "render_on_cpu", "render_on_device", "take_rows"]
