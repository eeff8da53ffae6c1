"""A labelling run over many photographs: in several processes, in constant memory, and resumable."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pfld_edge_calib.datasets.points_csv import csv_header, read_boxes_csv, read_points_csv, write_points_csv
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import DatasetPhoto, Face, Skip, Unit
from pfld_edge_calib.files import sha256_of
from pfld_edge_calib.labelling.labeller import DonePhoto, Labeller, LabelSettings
from pfld_edge_calib.parallel import ResultsFolder, Runner, unit_results
from pfld_edge_calib.photo import listed_paths, photos_in
from pfld_edge_runtime.arrays import Float64Array

LABEL_UNIT = 32
"""Photographs in a unit, which a kill costs at most."""

Boxes = dict[Path, Float64Array]


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
    boxes: dict[Path, list[Float64Array]] = {}
    for face in faces:
        boxes.setdefault(face.image, []).append(face.bbox_xyxy)
    return {photo: np.stack(of_photo) for photo, of_photo in boxes.items()}


def label_tasks(photos: Sequence[Path], boxes: Boxes | None, root: Path) -> list[DatasetPhoto]:
    """Assign boxes to photographs; those without boxes are left out, unless `boxes` is None: faces are to be found.

    Names in the CSV of labels are relative to `root`. No `photos` stand for every photograph that has a box; that none
    of them has one is a FaceSetError.
    """
    if boxes is None:
        return [DatasetPhoto(photo, name := _relative_name(photo, root), error=_unwritable(name)) for photo in photos]
    known = {_resolved(photo): of_photo for photo, of_photo in boxes.items()}
    chosen = [photo for photo in photos or boxes if _resolved(photo) in known]
    if not chosen:
        example = next(iter(boxes))
        raise FaceSetError(f"none of the {len(photos)} photographs has a box; the first box is of {example}")
    return [
        DatasetPhoto(
            photo,
            name := _relative_name(photo, root),
            tuple(Face(photo, box) for box in known[_resolved(photo)]),
            error=_unwritable(name),
        )
        for photo in chosen
    ]


def _relative_name(photo: Path, root: Path) -> str:
    """Path of a photograph relative to a folder, with forward slashes; absolute where it lies on another drive."""
    place = _resolved(photo)
    try:
        return Path(os.path.relpath(place, root.resolve())).as_posix()
    except ValueError:  # another drive
        return place.as_posix()


def _unwritable(name: str) -> str:
    """Say why a name can't stand in the CSV, which is UTF-8; empty where it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode(errors="backslashreplace").decode()
        return f"{shown}: its name is not UTF-8, as the CSV of labels is; rename it"
    return ""


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
        "teachers": " ".join(sha256_of(path)[:16] for path in teachers),
        "detectors": " ".join(detectors),
        "options": json.dumps(asdict(settings)),
    }


def label_photos(
    units: Sequence[Unit],
    make: Callable[[], Labeller],
    folder: ResultsFolder,
    run: Runner,
    advance: Callable[[int], object] = lambda _count: None,
    skip: Skip = lambda _error: None,
) -> None:
    """Label the photographs that `folder` does not hold yet, unit by unit.

    The result for a photograph depends on that photograph only, so that neither the division into units, the number of
    workers nor an interruption changes a byte.

    `units` are all of the run; `make` returns the labeller, see `Runner`. `advance` gets the number of photographs in
    each unit that is done, `skip` the error of each that can't be read, before it is stored: what it raises ends the
    run, and the photograph is read again by the next.
    """

    def named(result: bytes) -> bool:
        for _ in _done_photos(result, skip):
            pass
        return True

    with closing(unit_results(partial(_unit_work, make), units, run, folder, named)) as parts:
        for unit, _ in parts:
            advance(unit.count)


def _unit_work(make: Callable[[], Labeller]) -> Callable[[Unit], bytes]:
    labeller = make()
    return lambda unit: json.dumps([asdict(labeller(photo)) for photo in unit.photos()]).encode()


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


def write_labels(
    units: Sequence[Unit], folder: ResultsFolder, path: Path, points: int, skip: Skip = lambda _error: None
) -> LabellingReport:
    """Write the CSV of a finished run with `points` landmarks a face, if it has any; `skip` as in `label_photos`."""

    def photos() -> Iterator[DonePhoto]:
        for index in range(len(units)):
            yield from _done_photos(folder.get(index) or b"[]", skip)

    report = LabellingReport()
    for photo in photos():
        report.photos += 1
        report.labelled += len(photo.rows)
        report.dropped.update(photo.dropped)
        report.unreadable += bool(photo.unreadable)
    if report.labelled:
        write_points_csv(path, points, (row for photo in photos() for row in photo.rows))
    return report


def _done_photos(result: bytes, skip: Skip) -> Iterator[DonePhoto]:
    """Read a unit's result."""
    for record in json.loads(result):
        photo = DonePhoto(**record)
        if photo.unreadable:
            skip(FaceSetError(photo.unreadable))
        yield photo
