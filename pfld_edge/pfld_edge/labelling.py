"""What `pfld-edge label` works on and with: the photographs in units, and a labeller for each process."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np

from pfld_edge_calib.datasets.open_faces import FaceSet, is_sharded, open_faces
from pfld_edge_calib.face import Skip, photo_units
from pfld_edge_calib.labelling.labeller import BoxFinder, Labeller, LabelSettings
from pfld_edge_calib.labelling.run import LABEL_UNIT, boxes_by_photo, label_tasks, photos_of, tasks_identity
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_runtime import Contract, Detector, open_detector
from pfld_edge_runtime.arrays import Float64Array, Uint8Array
from pfld_edge_runtime.detection.detector import find_boxes
from pfld_edge_runtime.detection.onnx_detector import non_maximum_suppression

_SAME_FACE = 0.35
"""Intersection over union above which boxes of two detectors show one face."""


def label_plan(
    photos: Sequence[Path], boxes: Path | None, images: Path | None, out: Path, *, together: int, skip: Skip
) -> FaceSet:
    """Find the photographs of the command line's arguments.

    `together` files form a unit: 1 keeps each as soon as it is done. `skip` takes each shard that is damaged.

    Raises:
        UsageError: Options don't fit together.
        FaceSetError: There are no photographs.
    """
    if not any(map(is_sharded, photos)):
        places = None if boxes is None else boxes_by_photo(boxes, images)
        tasks = label_tasks(photos_of(photos, images), places, out.parent if images is None else images)
        return FaceSet(tuple(photo_units(tasks, together)), tasks_identity(tasks))
    if boxes is not None:
        raise click.UsageError("shards say themselves where faces are: leave --boxes out, or give --detector instead")
    others = [path for path in photos if not is_sharded(path)]
    if others:
        raise click.UsageError(f"{others[0]} is no shard: shards and other photographs need runs of their own")
    return open_faces(photos, size=LABEL_UNIT, skip=skip)


def open_labeller(
    teachers: Sequence[Path], detectors: Sequence[str], least_score: float | None, settings: LabelSettings
) -> Labeller:
    """Open teachers and detectors (none where boxes come with the photographs) on one thread, once in each process.

    Raises:
        PfldEdgeError: A file can't be used, or the teachers don't fit together.
    """
    finders = [open_detector(name, score_threshold=least_score) for name in detectors]
    if any(path.suffix.lower() != ".onnx" for path in teachers):
        import torch

        # One process a core: more threads would compete for it.
        torch.set_num_threads(1)
    opened = [open_landmark_model(path) for path in teachers]
    find: BoxFinder | None = partial(_boxes, finders, opened[0].contract) if finders else None
    return Labeller(opened, settings, find)


def _boxes(detectors: Sequence[Detector], contract: Contract, photo: Uint8Array) -> Float64Array:
    """Boxes of the faces that any detector finds, in order of their scores."""
    found = [find_boxes(detector, photo, "bgr", contract) for detector in detectors]
    boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.asarray(boxes[non_maximum_suppression(boxes, scores, _SAME_FACE)])
