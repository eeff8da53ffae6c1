"""Opens what `pfld-edge label` works with: teachers of any kind of file, and detectors. Called once in each process."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.labelling import BoxFinder, Labeller, LabelSettings, Teacher
from pfld_edge_convert.network import open_network
from pfld_edge_runtime import Contract, Detector, open_detector
from pfld_edge_runtime.detectors import find_boxes
from pfld_edge_runtime.detectors.nms import non_maximum_suppression

__all__ = ["open_labeller"]

_SAME_FACE = 0.35
"""Intersection over union above which boxes of two detectors, which never quite agree, show one face."""


def open_labeller(
    teachers: Sequence[Path], detectors: Sequence[str], least_score: float | None, settings: LabelSettings
) -> Labeller:
    """Open everything, on one thread.

    Args:
        teachers: What `open_network` opens.
        detectors: What `open_detector` opens; none where boxes come with the photographs.
        least_score: Score that a detected face needs, 0 to 1; each detector's own where None.
        settings: Of the labeller.

    Raises:
        PfldEdgeError: A file can't be used, or the teachers don't fit together.
    """
    finders = [open_detector(name, score_threshold=least_score) for name in detectors]
    opened = _teachers(teachers)
    find: BoxFinder | None = partial(_boxes, finders, opened[0].contract) if finders else None
    return Labeller(opened, settings, find)


def _teachers(paths: Sequence[Path]) -> list[Teacher]:
    if any(path.suffix.lower() != ".onnx" for path in paths):
        import torch

        # One process a core: more threads would stand in each other's way.
        torch.set_num_threads(1)
    networks = [open_network(path) for path in paths]
    return [Teacher(network.name, network.predict, network.contract, network.assumed) for network in networks]


def _boxes(detectors: Sequence[Detector], contract: Contract, photo: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Boxes of the faces that any detector finds, the surest first."""
    found = [find_boxes(detector, photo, "bgr", contract) for detector in detectors]
    boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.asarray(boxes[non_maximum_suppression(boxes, scores, _SAME_FACE)])
