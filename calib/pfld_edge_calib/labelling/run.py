"""Labels many photographs: all cores, bounded memory, and a kill costs a few photographs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from pfld_edge_calib.labelling.labeller import Labeller, PhotoLabels
from pfld_edge_calib.labelling.photographs import LabelTask
from pfld_edge_calib.labelling.progress_file import DonePhoto, ProgressFile
from pfld_edge_calib.points_csv_writer import points_row, write_points_csv
from pfld_edge_calib.process_pool import ordered_results

__all__ = ["LabellingReport", "label_photos", "label_task", "write_labels"]


@dataclass(slots=True)
class LabellingReport:
    """What a run did.

    Attributes:
        photos: Photographs, unreadable ones among them.
        labelled: Faces that got a label.
        dropped: Faces that got none, by key of `DROP_REASONS`.
        unreadable: Photographs that could not be read.
        complaints: Why, for the first of them.
    """

    photos: int = 0
    labelled: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    complaints: list[str] = field(default_factory=list)

    @property
    def found(self) -> int:
        """Faces that were found, labelled or not."""
        return self.labelled + sum(self.dropped.values())


def label_photos(
    tasks: Sequence[LabelTask],
    make: Callable[[], Labeller],
    progress: ProgressFile,
    workers: int = 1,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Label the photographs that `progress` does not hold yet.

    What is found in a photograph hangs on that photograph alone, so that neither the number of workers nor an
    interruption changes a byte.

    Args:
        tasks: All photographs of the run, those done among them.
        make: Gives the labeller; called once in each process. Picklable where there is more than one worker.
        progress: Where results go, a photograph at a time, in order.
        workers: Processes; 1 for this one.
        advance: Called with 1 after each photograph.

    Raises:
        LabellingError: The teachers can't be used, or a process was killed.
    """
    left = islice(tasks, progress.done, None)
    for done in ordered_results(partial(_photo_work, make), left, workers):
        progress.add(done)
        if advance is not None:
            advance(1)


def write_labels(progress: ProgressFile, path: Path, points: int, most_complaints: int = 20) -> LabellingReport:
    """Write the CSV of a finished run, unless it holds no face.

    Args:
        progress: Of the run.
        path: The CSV.
        points: Landmarks a face.
        most_complaints: How many unreadable photographs the report names.
    """
    report = LabellingReport()
    for photo in progress.photos():
        report.photos += 1
        report.labelled += len(photo.rows)
        report.dropped.update(photo.dropped)
        report.unreadable += bool(photo.unreadable)
        if photo.unreadable and len(report.complaints) < most_complaints:
            report.complaints.append(photo.unreadable)
    if report.labelled:
        write_points_csv(path, points, (row for photo in progress.photos() for row in photo.rows))
    return report


def _photo_work(make: Callable[[], Labeller]) -> Callable[[LabelTask], DonePhoto]:
    return partial(label_task, make())


def label_task(labeller: Labeller, task: LabelTask) -> DonePhoto:
    """Label one photograph."""
    found: PhotoLabels = labeller(task.photo, task.boxes, task.encoded)
    rows = [points_row(task.name, face.weight, face.landmarks, face.point_weights) for face in found.labels]
    return DonePhoto(rows, dict(found.dropped), found.unreadable)
