"""What a labelling run's results hang on, in a form that can be compared."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pfld_edge_calib.labelling.labeller import LabelSettings
from pfld_edge_calib.labelling.photographs import LabelTask

__all__ = ["run_identity", "tasks_identity"]


def run_identity(
    photographs: str, teachers: Sequence[Path], detectors: Sequence[str], settings: LabelSettings
) -> dict[str, str]:
    """Sum up a run: two runs of one identity give the same bytes.

    Args:
        photographs: What `tasks_identity` gives, or a source's own identity.
        teachers: The networks' files; their contents count, not their names.
        detectors: What they were asked for by, settings included.
        settings: Of the labeller.
    """
    return {
        "format": "pfld-edge-labels-1",
        "photographs": photographs,
        "teachers": " ".join(hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in teachers),
        "detectors": " ".join(detectors),
        "options": json.dumps(asdict(settings)),
    }


def tasks_identity(tasks: Sequence[LabelTask]) -> str:
    """Sum up photographs and boxes."""
    photos = hashlib.sha256()
    for task in tasks:
        photos.update(task.name.encode(errors="surrogateescape") + b"\n")
        photos.update(b"" if task.boxes is None else task.boxes.tobytes())
    return photos.hexdigest()
