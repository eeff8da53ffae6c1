"""Prepared datasets: shards of cropped faces, which training reads without photographs, and a manifest.

``prepared.json`` (`Manifest`) is written last: where it exists the dataset is complete. A shard is an ``.npz`` file.
One that is missing, damaged, or of another format is a FaceSetError. `prepare_faces` crops every face once, and resumes
where it stopped.
"""

import hashlib
import io
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.wflw import WFLW_ATTRIBUTES
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.files import sha256_of, write_atomically
from pfld_edge_calib.parallel import ResultsFolder, ordered_results
from pfld_edge_calib.photo import face_photo, is_outside
from pfld_edge_runtime import BoxError, Contract, CropRule, PfldEdgeError, crop_faces, crop_windows
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Int64Array, Uint8Array

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
        encoding: ``jpeg`` of a `quality` from 1 to 100, or ``raw``: uncompressed pixels, about six times as large.
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
    """A prepared dataset, with faces left out by reason.

    `source` is ``wflw train``, ``wflw test``, ``csv``, ``coco``, ``pts`` or ``listed``; `identity` is a hash of the
    faces and settings that it was made from.
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


class Crops(Protocol):
    """``(N, S, S, 3)`` uint8 BGR faces: an array, or an object that reads them when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, S, S, 3)``."""
        ...

    def __getitem__(self, rows: int | Int64Array, /) -> Uint8Array: ...


@dataclass(frozen=True, slots=True)
class Shard:
    """N faces of consecutive photographs.

    `landmarks` ``(N, P, 2)`` float32 are in pixels of the photograph, `windows` ``(N, 3)`` x, y and side of each crop
    in it; of a shard of an older version the crops count as the photographs. `weights` ``(N, P)`` are the confidences,
    0 to 1; `attributes` ``(N, 6)`` bool those of `WFLW_ATTRIBUTES`. Faces of one person or one photograph share one of
    the N `groups`.
    """

    crops: Crops
    landmarks: Float32Array
    windows: Int64Array
    weights: Float32Array
    attributes: BoolArray
    groups: tuple[str, ...]


def pack_shard(pictures: Sequence[bytes], groups: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack JPEG or raw pixels of each face, and the groups and other arrays of `Shard`, into an ``.npz`` file's bytes.

    Equal faces give equal bytes.
    """
    names = [group.encode(errors="surrogatepass") for group in groups]  # files' names, which need not be UTF-8
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


def read_shard(path: Path, size: int) -> Shard:
    """Read the labels of a shard with crops of `size` pixels, and map its pictures into memory."""
    try:
        crops = ShardCrops(path, size)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "pictures"}
        names = np.split(arrays["groups"], arrays["group_ends"])[:-1]
        landmarks = arrays["landmarks"]
        shard = Shard(
            crops,
            arrays.get("photo_landmarks", landmarks),
            arrays.get("windows", np.tile(np.array([0, 0, size]), (len(landmarks), 1))),
            arrays["weights"],
            arrays["attributes"].astype(bool),
            tuple(bytes(name).decode(errors="surrogatepass") for name in names),
        )
    except FileNotFoundError as error:
        raise FaceSetError(f"{path}: the shard is missing; run `pfld-edge prepare` again") from error
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FaceSetError(f"{path}: a damaged shard ({error}); delete it and run `pfld-edge prepare` again") from error
    labels = (shard.landmarks, shard.weights, shard.attributes, shard.groups)
    counts = {crops.shape[0], *(len(values) for values in labels)}
    if len(counts) > 1:
        raise FaceSetError(f"{path}: a damaged shard (its arrays differ in length); delete it and prepare again")
    return shard


class ShardCrops:
    """The crops of a prepared shard, decoded when asked for, also from several threads; FaceSetError if damaged."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._pictures = path, _mapped_array(path, "pictures")
        self._ends = np.load(path, allow_pickle=False)["picture_ends"]
        self.shape = (len(self._ends), size, size, 3)

    def __getitem__(self, row: int | Int64Array, /) -> Uint8Array:
        place = int(row)
        data = self._pictures[self._ends[place - 1] if place else 0 : self._ends[place]]
        if len(data) == np.prod(self.shape[1:]):
            return data.reshape(self.shape[1:])
        crop = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if crop is None or crop.shape != self.shape[1:]:
            raise FaceSetError(f"{self._path}: picture {place} is damaged; run `pfld-edge prepare` again")
        return np.asarray(crop, np.uint8)


def _mapped_array(path: Path, name: str) -> Uint8Array:
    """Map one array of an uncompressed ``.npz`` file into memory."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"{name}.npy").header_offset
    with path.open("rb") as file:
        file.seek(start + 26)  # of the local header: lengths of name and extra field, 2 bytes each (APPNOTE.TXT 4.3.7)
        lengths = file.read(4)
        file.seek(start + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"))
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, "r", file.tell(), shape).view(np.ndarray) if shape[0] else np.empty(0, np.uint8)


UNREADABLE = "unreadable"
"""Why faces were left out, in `Manifest.skipped`: their photographs could not be read."""

PROGRESS = "prepared.partial"
"""Folder of what an unfinished run knows of its finished shards."""

Shards = dict[int, tuple[ShardEntry, dict[str, int]]]
"""Finished shards by number, with the number of faces that were left out by reason."""


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """The manifest that was written, and the number of faces that an earlier run had prepared."""

    manifest: Manifest
    kept: int


def prepare_faces(
    faces: Sequence[Face],
    source: str,
    root: Path,
    out: Path,
    settings: PrepareSettings,
    workers: int,
    advance: Callable[[int], None] = lambda _count: None,
    skip: Callable[[FaceSetError], object] = lambda _error: None,
) -> PrepareReport:
    """Crop faces into the shards of a folder; resumes an earlier run of the same faces and settings.

    The shards' bytes depend on faces, photographs and settings, not on the number of `workers`, which are processes.
    `faces` have landmarks, all as many; `source` is the dataset's name for the manifest, `root` the folder of its
    photographs, `out` that of the shards. `advance` gets the number of faces done, `skip` the error of each photograph
    that can't be read, whose faces are left out. FaceSetError where no face could be cropped, or the folder holds
    another dataset.
    """
    points = {len(face.landmarks) for face in faces if face.landmarks is not None}
    if len(points) != 1:
        raise FaceSetError(f"faces have {sorted(points)} points; all of a set must have as many")
    identity = set_identity(faces, root, settings)
    complete = _finished(out, identity)
    if complete is not None:
        advance(len(faces))
        return PrepareReport(complete, complete.faces)
    progress = ResultsFolder(out / PROGRESS, {"set": identity})
    plans = dict(enumerate(_plan(faces, settings.shard_faces)))
    done = _finished_shards(out, progress, len(plans))
    kept = sum(entry.faces for entry, _ in done.values())
    advance(sum(len(photo) for number in done for photo in plans[number]))
    left = {number: photos for number, photos in plans.items() if number not in done}
    tasks = (photo for photos in left.values() for photo in photos)
    work = partial(_crop_photo, settings=settings)
    with closing(ordered_results(partial(copy, work), tasks, workers)) as results:
        for number, photos in left.items():
            cropped = [next(results) for _ in photos]
            for photo in cropped:
                if photo.complaint:
                    skip(FaceSetError(photo.complaint))
            skipped = Counter(reason for photo in cropped for reason in photo.skipped)
            entry = _write_shard(out / f"shard-{number:05d}.npz", cropped)
            progress.put(number, json.dumps([asdict(entry), skipped]).encode())
            done[number] = entry, skipped
            advance(sum(map(len, photos)))
    manifest = _manifest(source, identity, points.pop(), settings, done)
    write_atomically(out / MANIFEST, manifest.to_json().encode())
    shutil.rmtree(out / PROGRESS)
    return PrepareReport(manifest, kept)


def set_identity(faces: Sequence[Face], root: Path, settings: PrepareSettings) -> str:
    """Hash settings, annotations, and the photographs' names relative to `root` and sizes in bytes."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    sizes: dict[Path, int] = {}
    for face in faces:
        if face.image not in sizes:
            sizes[face.image] = face.image.stat().st_size if face.image.is_file() else -1
        name = face.image.relative_to(root) if face.image.is_relative_to(root) else face.image
        parts = (str(name.as_posix()), face.group, sorted(face.attributes), face.weight, sizes[face.image])
        digest.update(json.dumps(parts).encode())
        for array in (face.bbox_xyxy, face.landmarks, face.point_weights):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _plan(faces: Sequence[Face], shard_faces: int) -> Iterator[list[list[Face]]]:
    """Divide faces into shards, lists of photographs with their faces; a photograph is read once for all its faces."""
    by_photo: dict[Path, list[Face]] = {}
    for face in faces:
        by_photo.setdefault(face.image, []).append(face)
    shard: list[list[Face]] = []
    for photo in by_photo.values():
        shard.append(photo)
        if sum(map(len, shard)) >= shard_faces:
            yield shard
            shard = []
    if shard:
        yield shard


class _CroppedFace(NamedTuple):
    """One face: JPEG or raw pixels, its group, and its row of each array of `Shard`."""

    picture: bytes
    group: str
    rows: dict[str, NDArray[Any]]


class _CroppedPhoto(NamedTuple):
    """The faces of a photograph, the reasons why others were left out, and why the photograph can't be read."""

    faces: list[_CroppedFace]
    skipped: list[str]
    complaint: str = ""


def _crop_photo(faces: Sequence[Face], settings: PrepareSettings) -> _CroppedPhoto:
    try:
        photo = face_photo(faces[0])
    except FaceSetError as error:
        return _CroppedPhoto([], [UNREADABLE] * len(faces), str(error))
    found = [_crop_face(face, photo, settings) for face in faces]
    return _CroppedPhoto(
        [face for face in found if not isinstance(face, str)], [reason for reason in found if isinstance(reason, str)]
    )


def _crop_face(face: Face, photo: Uint8Array, settings: PrepareSettings) -> _CroppedFace | str:
    """One face, or the reason why it is left out."""
    if face.landmarks is None:
        return "without landmarks"
    weights = np.full(len(face.landmarks), face.weight, np.float32)
    if face.point_weights is not None:
        weights = weights * face.point_weights
    if not weights.any():
        return "of no weight"
    if is_outside(face, photo):
        return "outside of the photograph"
    try:
        windows = crop_windows(face.bbox_xyxy[None], settings.contract.crop.margin)
    except BoxError:
        return "with a box that has no area"
    rows = {
        "landmarks": (windows.to_crop(face.landmarks[None])[0] * settings.size).astype(np.float32),
        "photo_landmarks": face.landmarks.astype(np.float32),
        "windows": np.array([*windows.corners[0], windows.sizes[0]]),
        "weights": weights,
        "attributes": np.array([name in face.attributes for name in WFLW_ATTRIBUTES]),
    }
    return _CroppedFace(_encoded(crop_faces(photo, windows, settings.size)[0], settings), face.group, rows)


def _encoded(crop: Uint8Array, settings: PrepareSettings) -> bytes:
    if settings.encoding == "raw":
        return crop.tobytes()
    # Chroma at full resolution: subsampled, it blurs lips and irises.
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return bytes(cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, settings.quality, *sampling])[1])


def _write_shard(path: Path, photos: Sequence[_CroppedPhoto]) -> ShardEntry:
    faces = [face for photo in photos for face in photo.faces]
    if not faces:
        return ShardEntry(path.name, 0, "")
    arrays = {name: np.stack([face.rows[name] for face in faces]) for name in faces[0].rows}
    write_atomically(path, pack_shard([face.picture for face in faces], [face.group for face in faces], arrays))
    return ShardEntry(path.name, len(faces), sha256_of(path))


def _manifest(source: str, identity: str, points: int, settings: PrepareSettings, done: Shards) -> Manifest:
    skipped: Counter[str] = Counter()
    for _, reasons in done.values():
        skipped.update(reasons)
    shards = tuple(entry for _, (entry, _) in sorted(done.items()) if entry.faces)
    if not shards:
        raise FaceSetError(f"no face could be cut: {', '.join(f'{count} {why}' for why, count in skipped.items())}")
    return Manifest(source, identity, points, settings, shards, dict(sorted(skipped.items())))


def _finished(out: Path, identity: str) -> Manifest | None:
    """The manifest if the folder holds these faces completely; another dataset's is refused."""
    if (out / MANIFEST).is_file() and (found := open_prepared(out)).identity != identity:
        raise FaceSetError(f"{out}: holds another prepared set ({found.source}); choose another folder, or delete it")
    manifest = whole_set(out)
    if manifest is None:
        (out / MANIFEST).unlink(missing_ok=True)
    return manifest


def _finished_shards(out: Path, progress: ResultsFolder, count: int) -> Shards:
    """Intact shards of an earlier run, of `count` in all."""
    known = ((number, json.loads(progress.get(number) or b"null")) for number in range(count))
    found = {number: (ShardEntry(**record[0]), record[1]) for number, record in known if record is not None}
    return {number: entry for number, entry in found.items() if is_complete(out, entry[0])}
