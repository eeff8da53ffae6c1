"""Labels photographs that lie in shards, or on a cluster: unit by unit instead of one by one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.labelling.labeller import Labeller
from pfld_edge_calib.labelling.photographs import LabelTask
from pfld_edge_calib.labelling.progress_file import DonePhoto, ProgressFile
from pfld_edge_calib.labelling.run import label_task
from pfld_edge_calib.sources.runner import Runner
from pfld_edge_calib.sources.unit import Unit

__all__ = ["LABEL_UNIT", "LabelUnit", "ShardUnit", "TaskUnit", "label_units", "shard_units", "task_units"]

LABEL_UNIT = 32
"""Photographs of a unit, which a kill costs; labelling takes long enough that larger ones would save nothing."""


@dataclass(frozen=True, slots=True)
class TaskUnit:
    """Photographs that are files.

    Attributes:
        tasks: They.
    """

    tasks: tuple[LabelTask, ...]

    @property
    def count(self) -> int:
        """Photographs in it."""
        return len(self.tasks)

    def __iter__(self) -> Iterator[LabelTask]:
        """Give them in order."""
        return iter(self.tasks)


@dataclass(frozen=True, slots=True)
class ShardUnit:
    """Photographs of a shard.

    Attributes:
        unit: Where they are.
        boxed: Whether the shard says where faces are; otherwise they are to be found.
    """

    unit: Unit
    boxed: bool

    @property
    def count(self) -> int:
        """Photographs in it."""
        return self.unit.count

    def __iter__(self) -> Iterator[LabelTask]:
        """Read them in order."""
        for photo in self.unit.photos():
            task = LabelTask(photo.image, photo.name, encoded=photo.encoded)
            if self.boxed:
                if photo.faces is None:
                    raise FaceSetError(f"{photo.image}: no box beside it; give a detector")
                boxes = np.array([face.bbox_xyxy for face in photo.faces]).reshape(-1, 4)
                task = replace(task, boxes=boxes)
            yield task


LabelUnit = TaskUnit | ShardUnit


def task_units(tasks: Sequence[LabelTask]) -> list[LabelUnit]:
    """Cut photographs that are files into units."""
    return [TaskUnit(tuple(tasks[start : start + LABEL_UNIT])) for start in range(0, len(tasks), LABEL_UNIT)]


def shard_units(units: Sequence[Unit], *, boxed: bool) -> list[LabelUnit]:
    """Wrap the units of shards; see `ShardUnit`."""
    return [ShardUnit(unit, boxed) for unit in units]


def label_units(
    units: Sequence[LabelUnit],
    make: Callable[[], Labeller],
    progress: ProgressFile,
    run: Runner,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Label the photographs that `progress` does not hold yet; as `label_photos`, and to the same bytes.

    Args:
        units: All of the run.
        make: Gives the labeller; called once in each process. Picklable.
        progress: Where results go, in order.
        run: Where units are worked on.
        advance: Called with 1 after each photograph.

    Raises:
        FaceSetError: A shard is damaged, or says no boxes.
        LabellingError: The teachers can't be used, or a process was killed.
    """
    left, known = list(units), progress.done
    while left and known >= left[0].count:
        known -= left.pop(0).count
    for results in run(partial(_unit_work, make), left):
        # Of the first unit a killed run may have kept some.
        for done in results[known:]:
            progress.add(done)
            if advance is not None:
                advance(1)
        known = 0


def _unit_work(make: Callable[[], Labeller]) -> Callable[[LabelUnit], list[DonePhoto]]:
    return partial(_label_unit, make())


def _label_unit(labeller: Labeller, unit: LabelUnit) -> list[DonePhoto]:
    return [label_task(labeller, task) for task in unit]
