"""The format of prepared datasets: a manifest and shards of cropped faces, which training reads without photographs.

``prepared.json`` (`Manifest`) is written last: where it exists the dataset is complete. A shard is an ``.npz`` file.
One that is missing, damaged, or of another format is a FaceSetError.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.files import sha256_of
from pfld_edge_runtime import Contract, CropRule, PfldEdgeError

MANIFEST = "prepared.json"
FORMAT = 1

ROOM = 1.5
"""Side of a prepared crop over that of the network's crop, so that the square rotated by 45 degrees (1.41) fits."""

_ENCODINGS = ("jpeg", "raw")


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """Settings of a prepared dataset; FaceSetError is raised where a value is out of range.

    Attributes:
        input_size: Side of the input, in pixels, of the networks that will be trained.
        margin: Side of their crop over the box's longer side.
        encoding: ``jpeg``, or ``raw`` for uncompressed pixels, about six times as large.
        quality: JPEG quality, 1 to 100.
        shard_faces: Faces in a shard; faces of one photograph stay together.
    """

    input_size: int = 112
    margin: float = 1.2
    encoding: str = "jpeg"
    quality: int = 95
    shard_faces: int = 1024

    def __post_init__(self) -> None:
        """Check the values."""
        if self.encoding not in _ENCODINGS:
            raise FaceSetError(f"unknown encoding {self.encoding!r}; known: {', '.join(_ENCODINGS)}")
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
        """A contract by which the runtime's crop cuts prepared crops: BGR, with `ROOM` around the face."""
        return Contract(input_size=self.size, crop=CropRule(margin=self.margin * ROOM))


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard in a manifest: its name in the folder, its number of faces, and the hash of its bytes."""

    file: str
    faces: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A prepared dataset.

    Attributes:
        source: The original dataset: ``wflw train``, ``csv``, ``coco``.
        identity: Hash of the faces and settings that it was made from.
        points: Landmarks a face.
        skipped: Number of faces left out, by reason.
    """

    source: str
    identity: str
    points: int
    settings: PrepareSettings
    shards: tuple[ShardEntry, ...]
    skipped: Mapping[str, int]

    @property
    def faces(self) -> int:
        """Number of its faces."""
        return sum(shard.faces for shard in self.shards)

    def to_json(self) -> str:
        """Format as JSON, a shard a line."""
        record: dict[str, Any] = asdict(self) | {"format": FORMAT, "skipped": dict(self.skipped)}
        shards = ",\n  ".join(json.dumps(entry, sort_keys=True) for entry in record.pop("shards"))
        rest = json.dumps(record, sort_keys=True, indent=1).removesuffix("\n}")
        return f'{rest},\n "shards": [\n  {shards}\n ]\n}}\n'


def open_prepared(folder: Path) -> Manifest:
    """Read the manifest of a prepared folder."""
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
    except FaceSetError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FaceSetError(f"{path}: damaged ({error!r}); prepare again") from error


def whole_set(out: Path) -> Manifest | None:
    """Read the manifest of a folder; None where there is none, or a shard is missing or damaged."""
    if not (out / MANIFEST).is_file():
        return None
    manifest = open_prepared(out)
    return manifest if all(is_complete(out, entry) for entry in manifest.shards) else None


def is_complete(out: Path, entry: ShardEntry) -> bool:
    """Whether a shard's file has the bytes that the manifest lists."""
    path = out / entry.file
    return not entry.faces or (path.is_file() and sha256_of(path) == entry.sha256)


@dataclass(frozen=True, slots=True)
class Shard:
    """Faces of consecutive photographs.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8 BGR.
        landmarks: ``(N, P, 2)`` float32, pixels of the crop.
        photo_landmarks: ``(N, P, 2)`` float32, pixels of the photograph.
        windows: ``(N, 3)`` int64, x, y and side of each crop in its photograph, in pixels. A shard of an older version
            has none: its crops then count as the photographs.
        weights: ``(N, P)`` float32, confidence in each landmark, 0 to 1.
        attributes: ``(N, 6)`` bool, in the order of `pfld_edge_calib.WFLW_ATTRIBUTES`.
        groups: N names; faces of one person or one photograph share one.
    """

    crops: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    photo_landmarks: NDArray[np.float32]
    windows: NDArray[np.int64]
    weights: NDArray[np.float32]
    attributes: NDArray[np.bool_]
    groups: tuple[str, ...]


def pack_shard(pictures: Sequence[bytes], groups: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack JPEG or raw pixels of each face, and the groups and other arrays of `Shard`, into an ``.npz`` file's bytes.

    Equal faces give equal bytes.
    """
    names = [group.encode() for group in groups]
    packed = io.BytesIO()
    np.savez(
        packed,
        pictures=np.frombuffer(b"".join(pictures), np.uint8),
        picture_ends=np.cumsum([len(picture) for picture in pictures], dtype=np.int64),
        **arrays,  # type: ignore[arg-type]
        groups=np.frombuffer(b"".join(names), np.uint8),
        group_ends=np.cumsum([len(name) for name in names], dtype=np.int64),
    )
    return packed.getvalue()


def read_shard(path: Path, size: int, *, pictures: bool = True) -> Shard:
    """Read a shard with crops of `size` pixels; without `pictures` its crops are not decoded and left empty."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if pictures or name != "pictures"}
        crops = np.zeros((0, size, size, 3), np.uint8)
        if pictures:
            crops = np.stack([_decoded(each, size) for each in _parts(arrays["pictures"], arrays["picture_ends"])])
        groups = [bytes(name).decode() for name in _parts(arrays["groups"], arrays["group_ends"])]
        landmarks = arrays["landmarks"]
        shard = Shard(
            crops,
            landmarks,
            arrays.get("photo_landmarks", landmarks),
            arrays.get("windows", np.tile(np.array([0, 0, size]), (len(landmarks), 1))),
            arrays["weights"],
            arrays["attributes"].astype(bool),
            tuple(groups),
        )
    except FileNotFoundError as error:
        raise FaceSetError(f"{path}: the shard is missing; run `pfld-edge prepare` again") from error
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, cv2.error) as error:
        raise FaceSetError(f"{path}: a damaged shard ({error}); delete it and run `pfld-edge prepare` again") from error
    counts = {len(arrays["picture_ends"]), len(shard.landmarks), len(shard.weights), len(shard.attributes), len(groups)}
    if len(counts) > 1:
        raise FaceSetError(f"{path}: a damaged shard (its arrays differ in length); delete it and prepare again")
    return shard


def _parts(flat: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    return np.split(flat, ends[:-1]) if len(ends) else []


def _decoded(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if len(picture) == size * size * 3:
        return picture.reshape(size, size, 3)
    crop = cv2.imdecode(picture, cv2.IMREAD_COLOR)
    if crop is None or crop.shape != (size, size, 3):
        raise ValueError(f"a picture is not {size} x {size}")
    return np.asarray(crop, np.uint8)
