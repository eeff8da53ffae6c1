"""What a labelling run has done so far: an append-only file with a line a photograph.

A line is JSON and ends with a line feed; a run that was killed leaves at most one line without, which the next run cuts
off. The first line says which run it is, so that no other goes on from it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pfld_edge_calib.errors import LabellingError

__all__ = ["DonePhoto", "ProgressFile"]


@dataclass(frozen=True, slots=True)
class DonePhoto:
    """What became of one photograph.

    Attributes:
        rows: Its lines of the CSV.
        dropped: Faces that got no label, by reason.
        unreadable: Why it could not be read; empty where it could.
    """

    rows: list[list[str]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    unreadable: str = ""


class ProgressFile:
    """The file of one run, open for its next photographs.

    Attributes:
        done: Photographs in it.
    """

    def __init__(self, path: Path, run: Mapping[str, str]) -> None:
        """Go on with a file, or begin it.

        Args:
            path: The file.
            run: What the results hang on, name and value.

        Raises:
            LabellingError: The file belongs to another run.
            OSError: It can't be written.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        begun, whole = self._whole(path)
        self.done = max(0, begun - 1)
        if begun:
            self._check(run)
        self._file = path.open("r+b" if path.exists() else "wb")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not begun:
            self._write(dict(run))

    def __enter__(self) -> "ProgressFile":
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, and leave it, unless it would only stand in the way: there is nothing in it."""
        self._file.close()
        if error is not None and not self.kept():
            self.path.unlink(missing_ok=True)

    def add(self, photo: DonePhoto) -> None:
        """Note the next photograph; from then on it outlives a kill."""
        self._write({"rows": photo.rows, "dropped": photo.dropped, "unreadable": photo.unreadable})
        self.done += 1

    def kept(self) -> int:
        """Count the photographs in the file itself: an interrupt may fall between a line and its count in `done`."""
        return max(0, self._whole(self.path)[0] - 1)

    def photos(self) -> Iterator[DonePhoto]:
        """Read what is done, a photograph at a time."""
        with self.path.open("rb") as file:
            next(file, None)
            for line in file:
                yield DonePhoto(**json.loads(line))

    def remove(self) -> None:
        """Delete the file: its results are elsewhere."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, record: Mapping[str, object]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode(errors="surrogateescape") + b"\n")
        self._file.flush()

    @staticmethod
    def _whole(path: Path) -> tuple[int, int]:
        """Count the whole lines, and the bytes that they take."""
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
            line = file.readline()
        try:
            before = json.loads(line)
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise LabellingError(f"{self.path}: not the progress of a labelling run; give another output")
        changed = [name for name in run if before.get(name) != run[name]]
        if changed:
            raise LabellingError(
                f"{self.path} is the progress of a run with other {', '.join(changed)}: repeat that command to finish "
                f"it, or delete the file"
            )
