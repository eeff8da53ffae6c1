"""Which photographs go into which shard."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfld_edge_calib.face import Face
from pfld_edge_calib.prepared.settings import PrepareSettings

__all__ = ["ShardPlan", "identity_of", "plan_shards"]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What one shard is made of.

    Attributes:
        number: From 0.
        photographs: Each with its faces, in order.
    """

    number: int
    photographs: tuple[tuple[Face, ...], ...]

    @property
    def faces(self) -> int:
        """How many faces it shows."""
        return sum(len(faces) for faces in self.photographs)


def plan_shards(faces: Sequence[Face], shard_faces: int) -> list[ShardPlan]:
    """Part faces into shards; a photograph is opened once, for all of its faces.

    Args:
        faces: In any order; photographs keep the order of their first face.
        shard_faces: A shard ends with the photograph that makes it so large.
    """
    by_photo: dict[Path, list[Face]] = {}
    for face in faces:
        by_photo.setdefault(face.image, []).append(face)
    plans: list[ShardPlan] = []
    current: list[tuple[Face, ...]] = []
    count = 0
    for group in by_photo.values():
        current.append(tuple(group))
        count += len(group)
        if count >= shard_faces:
            plans.append(ShardPlan(len(plans), tuple(current)))
            current, count = [], 0
    if current:
        plans.append(ShardPlan(len(plans), tuple(current)))
    return plans


def identity_of(faces: Sequence[Face], root: Path, settings: PrepareSettings) -> str:
    """Hash all that a prepared set depends on but the photographs' pixels, of which it takes sizes in bytes.

    Args:
        faces: In order.
        root: Photographs are named relative to it, so that the set may be moved.
        settings: See `PrepareSettings`.
    """
    digest = hashlib.sha256(json.dumps(settings.to_dict(), sort_keys=True).encode())
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
