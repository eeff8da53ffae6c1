"""Prepares a set: cuts, packs, goes on where it was stopped."""

import json
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.prepared.cutting import CutFace, CutPhoto, cut_photo
from pfld_edge_calib.prepared.manifest import MANIFEST, Manifest, ShardEntry, open_prepared
from pfld_edge_calib.prepared.plan import ShardPlan, identity_of, plan_shards
from pfld_edge_calib.prepared.settings import PrepareSettings
from pfld_edge_calib.prepared.shard_file import pack_shard, sha256_of
from pfld_edge_calib.process_pool import ordered_results

__all__ = ["PrepareReport", "prepare_faces", "whole_set"]

PROGRESS = "prepared.partial.json"
"""Shards that are done, while others are not: a line each, after a first one that says of what."""


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What became of a set.

    Attributes:
        manifest: Of the set.
        complaints: Photographs that could not be read, in this run.
        kept: Faces that were there already.
    """

    manifest: Manifest
    complaints: tuple[str, ...]
    kept: int


def prepare_faces(
    faces: Sequence[Face],
    source: str,
    root: Path,
    out: Path,
    settings: PrepareSettings,
    workers: int,
    advance: Callable[[int], None] = lambda _count: None,
) -> PrepareReport:
    """Cut faces into the shards of a folder; go on where an earlier run of the same faces and settings was stopped.

    The shards' bytes depend on faces, photographs and settings, not on how many processes made them.

    Args:
        faces: With landmarks, all of as many points.
        source: In words, for the manifest.
        root: Folder of the photographs.
        out: The folder; made where it is missing.
        settings: See `PrepareSettings`.
        workers: Processes.
        advance: Called with the number of faces done.

    Raises:
        FaceSetError: Nothing is left to keep, or the folder holds another set.
        LabellingError: A process was killed.
        OSError: The folder can't be written.
    """
    points = {len(face.landmarks) for face in faces if face.landmarks is not None}
    if len(points) != 1:
        raise FaceSetError(f"faces have {sorted(points)} points; all of a set must have as many")
    identity = identity_of(faces, root, settings)
    whole = _finished(out, identity)
    if whole is not None:
        advance(len(faces))
        return PrepareReport(whole, (), whole.faces)
    out.mkdir(parents=True, exist_ok=True)
    done = _done_before(out, identity)
    plans = plan_shards(faces, settings.shard_faces)
    left = [plan for plan in plans if plan.number not in done]
    advance(sum(plan.faces for plan in plans) - sum(plan.faces for plan in left))
    kept = sum(entry.faces for entry, _ in done.values())
    complaints: list[str] = []
    with closing(_cut_shards(left, settings, workers)) as shards_cut:
        for plan, photos in shards_cut:
            complaints += [photo.complaint for photo in photos if photo.complaint]
            entry = _write_shard(plan, photos, out)
            done[plan.number] = entry, dict(Counter(reason for photo in photos for reason in photo.skipped))
            _note(out, identity, done)
            advance(plan.faces)
    skipped: Counter[str] = Counter()
    for _, reasons in done.values():
        skipped.update(reasons)
    shards = tuple(entry for _, (entry, _) in sorted(done.items()) if entry.faces)
    if not shards:
        raise FaceSetError(f"no face could be cut: {', '.join(f'{count} {why}' for why, count in skipped.items())}")
    manifest = Manifest(source, identity, points.pop(), settings, shards, dict(sorted(skipped.items())))
    _replace(out / MANIFEST, manifest.to_json().encode())
    (out / PROGRESS).unlink(missing_ok=True)
    return PrepareReport(manifest, tuple(complaints), kept)


def _cut_shards(
    plans: Sequence[ShardPlan], settings: PrepareSettings, workers: int
) -> Generator[tuple[ShardPlan, list[CutPhoto]], None, None]:
    tasks = (photo for plan in plans for photo in plan.photographs)
    with closing(ordered_results(partial(_cutter, settings), tasks, workers)) as results:
        for plan in plans:
            yield plan, [next(results) for _ in plan.photographs]


def _cutter(settings: PrepareSettings) -> Callable[[Sequence[Face]], CutPhoto]:
    return partial(cut_photo, settings=settings)


def whole_set(out: Path) -> Manifest | None:
    """Read the set that a folder holds; None where there is none, or a shard of it is missing or damaged.

    Raises:
        FaceSetError: Its manifest is damaged.
    """
    if not (out / MANIFEST).is_file():
        return None
    manifest = open_prepared(out)
    return manifest if all(_is_whole(out, entry) for entry in manifest.shards) else None


def _finished(out: Path, identity: str) -> Manifest | None:
    """The whole set of these faces; another one is refused."""
    if (out / MANIFEST).is_file() and (found := open_prepared(out)).identity != identity:
        raise FaceSetError(f"{out}: holds another prepared set ({found.source}); choose another folder, or delete it")
    manifest = whole_set(out)
    if manifest is None:
        (out / MANIFEST).unlink(missing_ok=True)
    return manifest


def _done_before(out: Path, identity: str) -> dict[int, tuple[ShardEntry, dict[str, int]]]:
    """Shards of an earlier run that are still what they were; another set's are refused."""
    path = out / PROGRESS
    if not path.is_file():
        return {}
    try:
        first, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        before = str(first["identity"])
        entries = {line["number"]: (ShardEntry(**line["shard"]), dict(line["skipped"])) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise FaceSetError(f"{path}: damaged ({error!r}); delete it to begin anew") from error
    if before != identity:
        raise FaceSetError(f"{out}: holds the beginning of another prepared set; choose another folder, or delete it")
    return {number: found for number, found in entries.items() if _is_whole(out, found[0])}


def _is_whole(out: Path, entry: ShardEntry) -> bool:
    path = out / entry.file
    return not entry.faces or (path.is_file() and sha256_of(path) == entry.sha256)


def _write_shard(plan: ShardPlan, photos: Sequence[CutPhoto], out: Path) -> ShardEntry:
    faces: list[CutFace] = [face for photo in photos for face in photo.faces]
    name = f"shard-{plan.number:05d}.npz"
    if not faces:
        return ShardEntry(name, 0, "")
    data = pack_shard(
        [face.picture for face in faces],
        np.stack([face.landmarks for face in faces]),
        np.stack([face.weights for face in faces]),
        np.stack([face.attributes for face in faces]),
        [face.group for face in faces],
    )
    _replace(out / name, data)
    return ShardEntry(name, len(faces), sha256_of(out / name))


def _note(out: Path, identity: str, done: dict[int, tuple[ShardEntry, dict[str, int]]]) -> None:
    lines = [json.dumps({"identity": identity})]
    for number, (entry, skipped) in sorted(done.items()):
        shard = {"file": entry.file, "faces": entry.faces, "sha256": entry.sha256}
        lines.append(json.dumps({"number": number, "shard": shard, "skipped": skipped}))
    _replace(out / PROGRESS, "\n".join(lines).encode())


def _replace(path: Path, data: bytes) -> None:
    partial_path = path.with_name(f".{path.name}.partial")
    partial_path.write_bytes(data)
    partial_path.replace(path)
