"""A labelling run over many photographs: in several processes, in constant memory, and resumable.

The progress file is append-only, a JSON line a photograph; a killed run leaves at most one line without line feed,
which the next run cuts off. Its first line holds everything that the results depend on, so that another run is refused.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.points_csv import csv_header, read_boxes_csv, read_points_csv, write_points_csv
from pfld_edge_calib.errors import FaceSetError, LabellingError
from pfld_edge_calib.face import DatasetPhoto, Face, Skip, Unit
from pfld_edge_calib.labelling.labeller import DonePhoto, Labeller, LabelSettings
from pfld_edge_calib.parallel import Runner, check_same_run
from pfld_edge_calib.photo import listed_paths, photos_in

LABEL_UNIT = 32
"""Photographs in a unit, which a kill costs at most."""

Boxes = dict[Path, NDArray[np.float64]]


def photos_of(inputs: Sequence[Path], images: Path | None = None) -> list[Path]:
    """List photographs, folders' photographs, and those that text files name, each once, in the order given.

    A text file's paths are relative to `images`, or to the file's own folder where that is None. A folder or text file
    that is missing, or lists no photograph that exists, is a FaceSetError.
    """
    found: dict[Path, None] = {}
    for path in inputs:
        photos = [path]
        if path.suffix.lower() == ".txt":
            photos = listed_paths(path, images)
        elif path.is_dir():
            photos = photos_in(path)
        found.update(dict.fromkeys(photos))
    return list(found)


def boxes_by_photo(path: Path, images: Path | None = None) -> Boxes:
    """Read the ``(N, 4)`` boxes of each photograph's faces from a CSV, of boxes or of landmarks and their tight box."""
    faces = read_points_csv(path, images) if "x2" in csv_header(path) else read_boxes_csv(path, images)
    boxes: dict[Path, list[NDArray[np.float64]]] = {}
    for face in faces:
        boxes.setdefault(face.image, []).append(face.bbox_xyxy)
    return {photo: np.stack(of_photo) for photo, of_photo in boxes.items()}


def label_tasks(photos: Sequence[Path], boxes: Boxes | None, root: Path) -> list[DatasetPhoto]:
    """Assign boxes to photographs; those without boxes are left out, unless `boxes` is None: faces are to be found.

    Names in the CSV of labels are relative to `root`. No `photos` stand for every photograph that has a box; that none
    of them has one is a FaceSetError.
    """
    if boxes is None:
        return [DatasetPhoto(photo, _relative_name(photo, root)) for photo in photos]
    known = {_resolved(photo): of_photo for photo, of_photo in boxes.items()}
    chosen = [photo for photo in photos or boxes if _resolved(photo) in known]
    if not chosen:
        example = next(iter(boxes))
        raise FaceSetError(f"none of the {len(photos)} photographs has a box; the first box is of {example}")
    return [
        DatasetPhoto(photo, _relative_name(photo, root), tuple(Face(photo, box) for box in known[_resolved(photo)]))
        for photo in chosen
    ]


def _relative_name(photo: Path, root: Path) -> str:
    """Path of a photograph relative to a folder, with forward slashes; absolute where it lies on another drive."""
    place = _resolved(photo)
    try:
        return Path(os.path.relpath(place, root.resolve())).as_posix()
    except ValueError:  # another drive
        return place.as_posix()


def _resolved(photo: Path) -> Path:
    """Resolve a photograph's folder, where ".." behind a link leads elsewhere; the photograph's own name stays."""
    return photo.parent.resolve() / photo.name


def tasks_identity(tasks: Sequence[DatasetPhoto]) -> str:
    """Hash the names and boxes of photographs."""
    photos = hashlib.sha256()
    for task in tasks:
        photos.update(task.name.encode(errors="surrogateescape") + b"\n")
        for face in task.faces or ():
            photos.update(face.bbox_xyxy.tobytes())
    return photos.hexdigest()


def run_identity(
    photographs: str, teachers: Sequence[Path], detectors: Sequence[str], settings: LabelSettings
) -> dict[str, str]:
    """Collect what a run depends on: two runs with the same values write the same bytes.

    `photographs` comes from `tasks_identity`, or is a dataset's identity; `detectors` are names and settings.
    """
    return {
        "format": "pfld-edge-labels-1",
        "photographs": photographs,
        "teachers": " ".join(hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in teachers),
        "detectors": " ".join(detectors),
        "options": json.dumps(asdict(settings)),
    }


class ProgressFile:
    """The progress file of a run at `path`, open for appending, with the results of `done` photographs."""

    def __init__(self, path: Path, run: Mapping[str, str]) -> None:
        """Create the file, or resume the run that it belongs to; `run` holds everything that the results depend on.

        A file of another run is a LabellingError.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines, size = self._complete(path)
        self.done = max(0, lines - 1)
        if lines:
            with path.open("rb") as file:
                changed = check_same_run(file.readline(), run)
            if changed is None:
                raise LabellingError(f"{path}: not the progress of a labelling run; give another output")
            if changed:
                raise LabellingError(
                    f"{path} is the progress of a run with other {', '.join(changed)}: repeat that command to finish "
                    "it, or delete the file"
                )
        self._file = path.open("r+b" if path.exists() else "wb")
        self._file.truncate(size)
        self._file.seek(size)
        if not lines:
            self._write(dict(run))

    def __enter__(self) -> "ProgressFile":
        """Return itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close the file; after an error an empty one is deleted."""
        self._file.close()
        if error is not None and not self.kept():
            self.path.unlink(missing_ok=True)

    def add(self, photo: DonePhoto) -> None:
        """Append the next photograph; from then on it survives a kill."""
        self._write(asdict(photo))
        self.done += 1

    def kept(self) -> int:
        """Count the photographs in the file: an interrupt may fall between writing a line and counting it in `done`."""
        return max(0, self._complete(self.path)[0] - 1)

    def photos(self) -> Iterator[DonePhoto]:
        """Read the results, a photograph at a time."""
        with self.path.open("rb") as file:
            next(file, None)
            for line in file:
                yield DonePhoto(**json.loads(line))

    def remove(self) -> None:
        """Delete the file, once its results are in the CSV."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, record: Mapping[str, object]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode(errors="surrogateescape") + b"\n")
        self._file.flush()

    @staticmethod
    def _complete(path: Path) -> tuple[int, int]:
        """Number of complete lines, and their bytes."""
        lines = size = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    lines, size = lines + 1, size + len(line)
        return lines, size


def label_photos(
    units: Sequence[Unit],
    make: Callable[[], Labeller],
    progress: ProgressFile,
    run: Runner,
    advance: Callable[[int], object] = lambda _count: None,
    skip: Skip = lambda _error: None,
) -> None:
    """Label the photographs that `progress` does not hold yet, unit by unit.

    The result for a photograph depends on that photograph only, so that neither the division into units, the number of
    workers nor an interruption changes a byte.

    `units` are all of the run; `make` returns the labeller, see `Runner`. `advance` gets 1 after each photograph,
    `skip` the error of each that can't be read, before it is stored: what it raises ends the run, and the photograph is
    read again by the next.
    """
    left, known = list(units), progress.done
    while left and known >= left[0].count:
        known -= left.pop(0).count
    for results in run(partial(_unit_work, make), left):
        # A killed run may have finished a part of the first unit.
        for done in results[known:]:
            if done.unreadable:
                skip(FaceSetError(done.unreadable))
            progress.add(done)
            advance(1)
        known = 0


def _unit_work(make: Callable[[], Labeller]) -> Callable[[Unit], list[DonePhoto]]:
    labeller = make()
    return lambda unit: [labeller(photo) for photo in unit.photos()]


@dataclass(slots=True)
class LabellingReport:
    """Counts of photographs, unreadable ones among them, and of faces with label, and without by `DROP_REASONS`."""

    photos: int = 0
    labelled: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0

    @property
    def found(self) -> int:
        """Faces that were found, labelled or not."""
        return self.labelled + sum(self.dropped.values())


def write_labels(progress: ProgressFile, path: Path, points: int, skip: Skip = lambda _error: None) -> LabellingReport:
    """Write the CSV of a finished run with `points` landmarks a face, if it has any; `skip` as in `label_photos`."""
    report = LabellingReport()
    for photo in progress.photos():
        report.photos += 1
        report.labelled += len(photo.rows)
        report.dropped.update(photo.dropped)
        report.unreadable += bool(photo.unreadable)
        if photo.unreadable:
            skip(FaceSetError(photo.unreadable))
    if report.labelled:
        write_points_csv(path, points, (row for photo in progress.photos() for row in photo.rows))
    return report
