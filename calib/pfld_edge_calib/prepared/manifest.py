"""What a prepared set is: the file that is written last, and says that the set is whole."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.prepared.settings import PrepareSettings

__all__ = ["MANIFEST", "Manifest", "ShardEntry", "open_prepared"]

MANIFEST = "prepared.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard.

    Attributes:
        file: Its name in the folder.
        faces: How many it holds.
        sha256: Of its bytes.
    """

    file: str
    faces: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A prepared set.

    Attributes:
        source: What it was made of, in words: ``wflw train``, ``csv``, ``coco``.
        identity: Hash of the faces and settings that it was made of.
        points: Landmarks a face.
        settings: See `PrepareSettings`.
        shards: In order.
        skipped: Faces that are not in it, by reason.
    """

    source: str
    identity: str
    points: int
    settings: PrepareSettings
    shards: tuple[ShardEntry, ...]
    skipped: Mapping[str, int]

    @property
    def faces(self) -> int:
        """How many faces it holds."""
        return sum(shard.faces for shard in self.shards)

    def to_json(self) -> str:
        """As text, a shard a line."""
        record: dict[str, Any] = asdict(self) | {"format": FORMAT, "skipped": dict(self.skipped)}
        shards = ",\n  ".join(json.dumps(entry, sort_keys=True) for entry in record.pop("shards"))
        rest = json.dumps(record, sort_keys=True, indent=1).removesuffix("\n}")
        return f'{rest},\n "shards": [\n  {shards}\n ]\n}}\n'


def open_prepared(folder: Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        FaceSetError: It is missing, damaged, or of a newer format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FaceSetError(
            f"{folder}: not a prepared folder, {MANIFEST} is missing; `pfld-edge prepare` writes it last"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("format") != FORMAT:
            raise FaceSetError(f"{path}: of another format; prepare again with this version")
        shards = tuple(ShardEntry(**entry) for entry in record.pop("shards"))
        return Manifest(settings=PrepareSettings(**record.pop("settings")), shards=shards, **record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, FaceSetError):
            raise
        raise FaceSetError(f"{path}: damaged ({error!r}); prepare again") from error
