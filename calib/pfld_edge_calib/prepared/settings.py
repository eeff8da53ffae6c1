"""How faces are prepared."""

from dataclasses import asdict, dataclass
from typing import Any

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_runtime import Contract, CropRule, PfldEdgeError

__all__ = ["ENCODINGS", "ROOM", "PrepareSettings"]

ROOM = 1.5
"""Side of a prepared crop over that of the network's crop: the square turned by 45 degrees (1.41) still fits."""

ENCODINGS = ("jpeg", "raw")


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """What a prepared set depends on beside its faces.

    Attributes:
        input_size: Side of the input, in pixels, of the networks that will be trained.
        margin: Their crop's side as a multiple of the box's longer side.
        encoding: ``jpeg``, or ``raw`` for pixels as they are, some six times as large.
        quality: Of JPEG, 1 to 100.
        shard_faces: Faces a shard; one photograph's faces stay together.

    Raises:
        FaceSetError: A value is out of range.
    """

    input_size: int = 112
    margin: float = 1.2
    encoding: str = "jpeg"
    quality: int = 95
    shard_faces: int = 1024

    def __post_init__(self) -> None:
        """Check the values."""
        if self.encoding not in ENCODINGS:
            raise FaceSetError(f"unknown encoding {self.encoding!r}; known: {', '.join(ENCODINGS)}")
        if not 1 <= self.quality <= 100:
            raise FaceSetError(f"quality must be 1 to 100, found {self.quality}")
        if self.shard_faces < 1:
            raise FaceSetError(f"shard_faces must be 1 or more, found {self.shard_faces}")
        if not 16 <= self.input_size <= 1024:
            raise FaceSetError(f"input_size must be 16 to 1024, found {self.input_size}")
        try:
            CropRule(margin=self.margin * ROOM)
        except PfldEdgeError as error:
            raise FaceSetError(f"margin: {error}") from error

    @property
    def size(self) -> int:
        """Side of a prepared crop, pixels."""
        return round(self.input_size * ROOM)

    @property
    def contract(self) -> Contract:
        """A contract under which the runtime's own crop cuts what is kept: BGR, with `ROOM` around the face."""
        return Contract(input_size=self.size, crop=CropRule(margin=self.margin * ROOM))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for the manifest."""
        return asdict(self)
