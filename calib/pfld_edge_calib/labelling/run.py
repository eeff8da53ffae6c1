"""A labelling run over many photographs: in several processes, in constant memory, and resumable.

The progress file is append-only, a JSON line a photograph; a killed run leaves at most one line without line feed,
which the next run cuts off. Its first line holds everything that the results depend on, so that another run is refused.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

from pfld_edge_calib.datasets.points_csv import points_row, write_points_csv
from pfld_edge_calib.errors import FaceSetError, LabellingError
from pfld_edge_calib.labelling.labeller import Labeller, LabelSettings
from pfld_edge_calib.labelling.tasks import LabelTask, LabelUnit
from pfld_edge_calib.parallel import Runner, check_same_run


def run_identity(
    photographs: str, teachers: Sequence[Path], detectors: Sequence[str], settings: LabelSettings
) -> dict[str, str]:
    """Collect what a run depends on: two runs with the same values write the same bytes.

    Args:
        photographs: From `tasks_identity`, or a dataset's identity.
        teachers: The networks' files, of which the contents are hashed.
        detectors: Names and settings of the detectors.
        settings: Settings of the labeller.
    """
    return {
        "format": "pfld-edge-labels-1",
        "photographs": photographs,
        "teachers": " ".join(hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in teachers),
        "detectors": " ".join(detectors),
        "options": json.dumps(asdict(settings)),
    }


@dataclass(frozen=True, slots=True)
class DonePhoto:
    """The result for one photograph.

    Attributes:
        rows: Its lines of the CSV.
        dropped: Number of faces without label, by reason.
        unreadable: Why it could not be read; empty where it could.
    """

    rows: list[list[str]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    unreadable: str = ""


class ProgressFile:
    """The progress file of a run, open for appending.

    Attributes:
        path: The file.
        done: Number of photographs in it.
    """

    def __init__(self, path: Path, run: Mapping[str, str]) -> None:
        """Create the file, or resume the run that it belongs to.

        Args:
            path: The file.
            run: Everything that the results depend on, name and value.

        Raises:
            LabellingError: The file belongs to another run.
            OSError: It can't be written.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines, size = self._complete(path)
        self.done = max(0, lines - 1)
        if lines:
            self._check(run)
        self._file = path.open("r+b" if path.exists() else "wb")
        self._file.truncate(size)
        self._file.seek(size)
        if not lines:
            self._write(dict(run))

    def __enter__(self) -> "ProgressFile":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def _check(self, run: Mapping[str, str]) -> None:
        with self.path.open("rb") as file:
            changed = check_same_run(file.readline(), run)
        if changed is None:
            raise LabellingError(f"{self.path}: not the progress of a labelling run; give another output")
        if changed:
            raise LabellingError(
                f"{self.path} is the progress of a run with other {', '.join(changed)}: repeat that command to finish "
                f"it, or delete the file"
            )


def label_photos(
    units: Sequence[LabelUnit],
    make: Callable[[], Labeller],
    progress: ProgressFile,
    run: Runner,
    advance: Callable[[int], object] | None = None,
    skip: Callable[[FaceSetError], object] | None = None,
) -> None:
    """Label the photographs that `progress` does not hold yet, unit by unit.

    The result for a photograph depends on that photograph only, so that neither the division into units, the number of
    workers nor an interruption changes a byte.

    Args:
        units: All units of the run, those done among them.
        make: Returns the labeller; called once in each process. Picklable.
        progress: Stores results, in order.
        run: Where units are worked on.
        advance: Called with 1 after each photograph.
        skip: Called for each photograph that can't be read, before it is stored: what it raises ends the run, and the
            photograph is read again by the next.

    Raises:
        FaceSetError: A shard is damaged, or has no boxes.
        LabellingError: The teachers can't be used, or a process was killed.
    """
    left, known = list(units), progress.done
    while left and known >= len(left[0]):
        known -= len(left.pop(0))
    for results in run(partial(_unit_work, make), left):
        # A killed run may have finished a part of the first unit.
        for done in results[known:]:
            if done.unreadable and skip is not None:
                skip(FaceSetError(done.unreadable))
            progress.add(done)
            if advance is not None:
                advance(1)
        known = 0


def _unit_work(make: Callable[[], Labeller]) -> Callable[[LabelUnit], list[DonePhoto]]:
    labeller = make()
    return lambda unit: [_label_task(labeller, task) for task in unit]


def _label_task(labeller: Labeller, task: LabelTask) -> DonePhoto:
    found = labeller(task.photo, task.boxes, task.encoded)
    rows = [points_row(task.name, face.weight, face.landmarks, face.point_weights) for face in found.labels]
    return DonePhoto(rows, dict(found.dropped), found.unreadable)


@dataclass(slots=True)
class LabellingReport:
    """Counts of a run.

    Attributes:
        photos: Photographs, unreadable ones among them.
        labelled: Faces with a label.
        dropped: Faces without label, by key of `DROP_REASONS`.
        unreadable: Photographs that could not be read.
    """

    photos: int = 0
    labelled: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0

    @property
    def found(self) -> int:
        """Faces that were found, labelled or not."""
        return self.labelled + sum(self.dropped.values())


def write_labels(
    progress: ProgressFile, path: Path, points: int, skip: Callable[[FaceSetError], object] | None = None
) -> LabellingReport:
    """Write the CSV of a finished run, unless it has no face.

    Args:
        progress: Progress file of the run.
        path: The CSV.
        points: Landmarks a face.
        skip: Called for each photograph that could not be read, those of earlier runs among them.
    """
    report = LabellingReport()
    for photo in progress.photos():
        report.photos += 1
        report.labelled += len(photo.rows)
        report.dropped.update(photo.dropped)
        report.unreadable += bool(photo.unreadable)
        if photo.unreadable and skip is not None:
            skip(FaceSetError(photo.unreadable))
    if report.labelled:
        write_points_csv(path, points, (row for photo in progress.photos() for row in photo.rows))
    return report
