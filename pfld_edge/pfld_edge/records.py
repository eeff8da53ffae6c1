"""What `pfld-edge predict` found, for other programs: JSON, JSON lines and CSV."""

import csv
import errno
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from pfld_edge_runtime import Faces, LandmarkScheme

_WFLW_POINTS = 98
_POSE = ("yaw", "pitch", "roll")
_ABOUT = ("source", "frame", "seconds", "id", "x0", "y0", "x1", "y1", "score", "confidence", *_POSE)


@dataclass(frozen=True)
class FrameFaces:
    """The faces of a photograph, or of one frame of a video (its number, from 0, and time); source: its file."""

    source: str
    faces: Faces
    frame: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; pixels to a hundredth, angles to a tenth of a degree."""
        faces = self.faces.to_dicts()
        if faces and self.faces.scheme.num_landmarks == _WFLW_POINTS:
            pose = self.faces.head_pose()
            for record, *angles in zip(faces, pose.yaw, pose.pitch, pose.roll, strict=True):
                known = (round(float(angle), 1) if math.isfinite(angle) else None for angle in angles)
                record["pose"] = dict(zip(_POSE, known, strict=True))
        if self.frame is None or self.seconds is None:
            return {"photo": self.source, "faces": faces}
        return {"video": self.source, "frame": self.frame, "seconds": round(self.seconds, 4), "faces": faces}

    def rows(self) -> list[list[object]]:
        """One row of the CSV a face; None where nothing is known."""
        record, rows = self.to_dict(), []
        for face in record["faces"]:
            about = [self.source, self.frame, record.get("seconds"), face["id"], *face["box"]]
            angles = (face.get("pose", {}).get(key) for key in _POSE)
            points = (value for point in face["landmarks"] for value in point)
            rows.append([*about, face["score"], face["confidence"], *angles, *points])
        return rows


class RecordFile:
    """A ``.json``, ``.jsonl`` or ``.csv`` file that grows as faces are found.

    Lines and rows go to ``<name>.partial`` at once, where a killed run leaves them; a JSON document is written at the
    end. `close` gives the file its name.
    """

    def __init__(self, target: str, scheme: LandmarkScheme) -> None:
        """Begin a file, or JSON on standard output where the target is ``-``; raises OSError if it can't be."""
        self._target, self._scheme = target, scheme
        self._kind = ".json" if target == "-" else Path(target).suffix.lower()
        self._found: dict[str, list[dict[str, Any]]] = {"photos": []}
        self._file: TextIO | None = None
        self.empty = True
        if target == "-":
            return
        path = Path(target)
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "Is a directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = path.with_name(f"{path.name}.partial")
            # A name that is not UTF-8 keeps its bytes.
            self._file = self._partial.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise OSError(error.errno, error.strerror, target) from error
        if self._kind not in (".json", ".jsonl"):
            points = [f"{axis}_{name}" for name in scheme.names for axis in "xy"]
            csv.writer(self._file, lineterminator="\n").writerow([*_ABOUT, *points])

    def add(self, found: FrameFaces) -> None:
        """Append a photograph or a frame; raises OSError if it can't be."""
        self.empty = False
        with self._named():
            if self._kind == ".json":
                self._found.setdefault("photos" if found.frame is None else "frames", []).append(found.to_dict())
            elif self._file is not None and self._kind == ".jsonl":
                self._file.write(json.dumps({"scheme": self._scheme.name, **found.to_dict()}) + "\n")
            elif self._file is not None:
                csv.writer(self._file, lineterminator="\n").writerows(found.rows())

    def discard(self) -> None:
        """Leave an older file as it is."""
        if self._file is not None:
            self._file.close()
            self._partial.unlink()

    def close(self) -> None:
        """Finish the file and say where it is; raises OSError if it can't be."""
        with self._named():
            if self._kind == ".json":
                click.echo(json.dumps({"scheme": self._scheme.name, **self._found}, indent=1), self._file)
            if self._file is not None:
                self._file.close()
                self._partial.replace(self._target)
        if self._file is not None:
            click.echo(f"landmarks -> {self._target}")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the file in the error of a full disk, which doesn't."""
        try:
            yield
        except OSError as error:
            if self._file is None:
                raise
            with suppress(OSError):
                self._file.close()
            raise OSError(error.errno, error.strerror, self._target) from error
