"""What a set of any size is made of: work units, each read by whoever works on it, a photograph at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pfld_edge_calib.face import Face

__all__ = ["UNIT_FACES", "FaceSource", "SourcePhoto", "Unit"]

UNIT_FACES = 256
"""Lines or photographs of a unit: some tenths of a second of work, a whole number of the batches that networks get."""


@dataclass(frozen=True, slots=True)
class SourcePhoto:
    """A photograph of a set with the faces that the set says it shows.

    Attributes:
        image: Path of the photograph; in a shard the shard's path and the photograph's name in it.
        name: The same for the same photograph in every run, wherever the set lies.
        faces: None where the set doesn't say; without landmarks where it knows boxes only.
        encoded: The photograph's file, not decoded; None where `image` is to be read.
    """

    image: Path
    name: str
    faces: tuple[Face, ...] | None = None
    encoded: bytes | None = None


class Unit(Protocol):
    """A part of a set that one process works on. Picklable and small: it says where the photographs are."""

    @property
    def count(self) -> int:
        """Photographs in it, or lines of a list of faces."""

    def photos(self) -> Iterator[SourcePhoto]:
        """Read the photographs one after the other.

        Raises:
            FaceSetError: One is damaged.
        """


@dataclass(frozen=True, slots=True)
class FaceSource:
    """A set, cut into units in an order that hangs on the set alone.

    Attributes:
        units: All of them.
        identity: Changes when the set changes.
    """

    units: tuple[Unit, ...]
    identity: str

    @property
    def count(self) -> int:
        """Photographs of the set, or lines of a list of faces."""
        return sum(unit.count for unit in self.units)
