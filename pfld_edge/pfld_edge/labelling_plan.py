"""Which photographs `pfld-edge label` looks at: files one by one, or shards unit by unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from pfld_edge_calib.labelling import (
    LABEL_UNIT,
    LabelTask,
    LabelUnit,
    boxes_by_photo,
    label_tasks,
    photos_of,
    shard_units,
    task_units,
    tasks_identity,
)
from pfld_edge_calib.sources import is_sharded, open_shards

__all__ = ["LabellingPlan", "label_plan"]


@dataclass(frozen=True, slots=True)
class LabellingPlan:
    """The photographs of a run.

    Attributes:
        units: All of them, in units.
        tasks: All of them, one by one; none where they lie in shards.
        identity: Changes when they change.
        count: How many.
    """

    units: Sequence[LabelUnit]
    tasks: Sequence[LabelTask]
    identity: str
    count: int


def label_plan(
    photos: Sequence[Path], boxes: Path | None, images: Path | None, out: Path, *, sharded: bool, boxed: bool
) -> LabellingPlan:
    """Find the photographs.

    Args:
        photos: As on the command line.
        boxes: CSV that says where faces are.
        images: Folder that names are relative to.
        out: The labels' CSV.
        sharded: Whether `photos` are shards.
        boxed: Whether shards are asked where faces are.

    Raises:
        UsageError: Options don't fit together.
        FaceSetError: There are no photographs.
    """
    if not sharded:
        places = None if boxes is None else boxes_by_photo(boxes, images)
        tasks = label_tasks(photos_of(photos, images), places, out.parent if images is None else images)
        return LabellingPlan(task_units(tasks), tasks, tasks_identity(tasks), len(tasks))
    if boxes is not None:
        raise click.UsageError("shards say themselves where faces are: leave --boxes out, or give --detector instead")
    others = [path for path in photos if not is_sharded(path)]
    if others:
        raise click.UsageError(f"{others[0]} is no shard: shards and other photographs need runs of their own")
    source = open_shards(list(photos), LABEL_UNIT)
    return LabellingPlan(shard_units(source.units, boxed=boxed), (), source.identity, source.count)
