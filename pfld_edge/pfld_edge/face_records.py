"""What was found, for other programs: JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pfld_edge_runtime import Faces, LandmarkScheme

__all__ = ["FrameFaces", "as_csv", "as_json", "as_json_line"]

_WFLW_POINTS = 98
_POSE = ("yaw", "pitch", "roll")


@dataclass(frozen=True)
class FrameFaces:
    """The faces of a photograph, or of one frame of a video.

    Attributes:
        source: The file, or ``camera 0``.
        faces: What was found.
        frame: Number of the frame, from 0; None for a photograph.
        seconds: When it was taken; None for a photograph.
    """

    source: str
    faces: Faces
    frame: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; pixels to a hundredth, angles to a tenth of a degree."""
        faces = self.faces.to_dicts()
        if self.faces.scheme.num_landmarks == _WFLW_POINTS:
            for record, angles in zip(faces, _angles(self.faces), strict=True):
                record["pose"] = dict(zip(_POSE, angles, strict=True))
        if self.frame is None or self.seconds is None:
            return {"photo": self.source, "faces": faces}
        return {"video": self.source, "frame": self.frame, "seconds": round(self.seconds, 4), "faces": faces}


def as_json(frames: Sequence[FrameFaces], scheme: LandmarkScheme) -> bytes:
    """Put photographs and frames into one JSON document."""
    photos = [frame.to_dict() for frame in frames if frame.frame is None]
    video = [frame.to_dict() for frame in frames if frame.frame is not None]
    record = {"scheme": scheme.name, "photos": photos} | ({"frames": video} if video else {})
    return json.dumps(record, indent=1).encode()


def as_json_line(frame: FrameFaces, scheme: LandmarkScheme) -> str:
    """One photograph or frame as one line."""
    return json.dumps({"scheme": scheme.name, **frame.to_dict()}) + "\n"


def _csv_header(scheme: LandmarkScheme) -> list[str]:
    """Name the columns."""
    points = [f"{axis}_{name}" for name in scheme.names for axis in "xy"]
    about = ["source", "frame", "seconds", "id", "x0", "y0", "x1", "y1", "score", "confidence", "yaw", "pitch", "roll"]
    return about + points


def _csv_rows(frame: FrameFaces) -> list[list[object]]:
    """One row a face."""
    rows: list[list[object]] = []
    for record in frame.to_dict()["faces"]:
        pose = record.get("pose", {})
        about = [frame.source, frame.frame, None if frame.seconds is None else round(frame.seconds, 4), record["id"]]
        values = [*record["box"], record["score"], record["confidence"], *(pose.get(key) for key in _POSE)]
        rows.append([*about, *values, *(value for point in record["landmarks"] for value in point)])
    return rows


def as_csv(frames: Sequence[FrameFaces], scheme: LandmarkScheme) -> bytes:
    """Put all faces into one table; empty cells where nothing is known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_csv_header(scheme))
    for frame in frames:
        writer.writerows(_csv_rows(frame))
    return text.getvalue().encode()


def _angles(faces: Faces) -> list[list[float | None]]:
    """Yaw, pitch and roll of each face."""
    if len(faces) == 0:
        return []
    pose = faces.head_pose()
    return [
        [round(float(angle), 1) if math.isfinite(angle) else None for angle in angles]
        for angles in zip(pose.yaw, pose.pitch, pose.roll, strict=True)
    ]
