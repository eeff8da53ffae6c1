"""The faces of one ``[[data]]`` table: listed ones that are cut from photographs, or prepared ones."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import (
    WFLW_ATTRIBUTES,
    Face,
    as_wflw_98,
    cut_faces,
    labelled_faces,
    read_points_csv,
)
from pfld_edge_calib.point_maps import points_as_wflw_98
from pfld_edge_calib.prepared import MANIFEST, ROOM, Manifest, Shard, open_prepared, read_shard
from pfld_edge_runtime import IBUG_68, WFLW_98, Contract
from pfld_edge_train.data_config import DataConfig
from pfld_edge_train.errors import TrainConfigError

__all__ = ["FaceSource", "Known", "open_source"]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a source's faces without looking at them.

    Attributes:
        groups: N names; faces of one share a person or a photograph.
        weights: ``(N, P)`` float32, trust in each landmark.
        attributes: ``(N, 6)`` bool, in the order of `pfld_edge_calib.WFLW_ATTRIBUTES`.
    """

    groups: tuple[str, ...]
    weights: NDArray[np.float32]
    attributes: NDArray[np.bool_]


class FaceSource(Protocol):
    """Faces that can be cut."""

    def known(self) -> Known:
        """Give what is known of them."""
        ...

    def fingerprint(self) -> bytes:
        """Hash all that their crops depend on."""
        ...

    def cut(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        """Yield ``(n, S, S, 3)`` uint8 BGR crops and their landmarks ``(n, P, 2)``, pixels of the crop."""
        ...


def open_source(data: DataConfig, contract: Contract, wide: Contract) -> FaceSource:
    """Open the faces of one table.

    Args:
        data: The table.
        contract: Of the network; says which points it finds.
        wide: The contract of what training keeps of a face: larger, with room around it.

    Raises:
        FaceSetError: The source can't be read.
        TrainConfigError: It has other points than the network, or was prepared for another crop.
    """
    path = Path(data.path)
    wider = data.scheme == IBUG_68.name
    if wider and contract.landmarks != WFLW_98:
        raise TrainConfigError(
            f"{path}: scheme = {data.scheme!r} is for networks of {WFLW_98.name}, not of {contract.landmarks.name}"
        )
    if (path / MANIFEST).is_file():
        source: FaceSource = _PreparedFaces(path, open_prepared(path), data, wide)
    else:
        source = _ListedFaces(_listed(data, wider=wider), wide, weighted=data.weighted)
    points = source.known().weights.shape[1]
    if points != contract.landmarks.num_landmarks:
        advice = (
            f"; scheme = {IBUG_68.name!r} in its [[data]] maps them"
            if (points, contract.landmarks) == (IBUG_68.num_landmarks, WFLW_98)
            else "; [landmarks] names another scheme"
        )
        raise TrainConfigError(
            f"{path}: {points} points a face, the network has {contract.landmarks.num_landmarks} "
            f"({contract.landmarks.name}){advice}"
        )
    return source


def _listed(data: DataConfig, *, wider: bool) -> list[Face]:
    path, images = Path(data.path), Path(data.images) if data.images else None
    if path.suffix.lower() == ".csv":
        faces = read_points_csv(path, images, data.group_by)
    else:
        faces = labelled_faces(path, data.split)
    return as_wflw_98(faces) if wider else faces


class _ListedFaces:
    """Faces of a list, cut from their photographs with the runtime's crop."""

    def __init__(self, faces: list[Face], wide: Contract, *, weighted: bool) -> None:
        self._faces, self._wide, self._weighted = faces, wide, weighted

    def known(self) -> Known:
        rows = []
        for face in self._faces:
            points = np.ones(len(face.landmarks if face.landmarks is not None else ()), np.float32)
            if face.point_weights is not None:
                points = face.point_weights
            rows.append(points * face.weight if self._weighted else points > 0)
        attributes = [[name in face.attributes for name in WFLW_ATTRIBUTES] for face in self._faces]
        return Known(tuple(face.group for face in self._faces), np.array(rows, np.float32), np.array(attributes))

    def fingerprint(self) -> bytes:
        digest = hashlib.sha256()
        for face in self._faces:
            digest.update(str(face.image).encode())
            digest.update(face.bbox_xyxy.tobytes())
            if face.landmarks is not None:
                digest.update(face.landmarks.tobytes())
        return digest.digest()

    def cut(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        for batch in cut_faces(self._faces, self._wide, batch_size=64):
            known = np.stack([face.landmarks for face in batch.faces if face.landmarks is not None])
            yield batch.crops, batch.windows.to_crop(known) * self._wide.input_size


class _PreparedFaces:
    """Faces of a prepared folder."""

    def __init__(self, folder: Path, manifest: Manifest, data: DataConfig, wide: Contract) -> None:
        settings = manifest.settings
        if manifest.source == "wflw test":
            raise TrainConfigError(f"{folder}: made of WFLW's test list, from which no run learns")
        if (settings.size, settings.contract.crop) != (wide.input_size, wide.crop):
            raise TrainConfigError(
                f"{folder}: prepared with --input-size {settings.input_size} --margin {settings.margin:g}, the network "
                f"needs {round(wide.input_size / ROOM)} and {wide.crop.margin / ROOM:g}; prepare it anew"
            )
        self._folder, self._manifest, self._wide = folder, manifest, wide
        self._weighted, self._wider = data.weighted, data.scheme == IBUG_68.name

    def known(self) -> Known:
        groups: list[str] = []
        weights, attributes = [], []
        for shard in self._shards(pictures=False):
            groups += shard.groups
            trust = shard.weights if self._weighted else (shard.weights > 0).astype(np.float32)
            weights.append(points_as_wflw_98(shard.landmarks, trust)[1] if self._wider else trust)
            attributes.append(shard.attributes)
        return Known(tuple(groups), np.concatenate(weights), np.concatenate(attributes))

    def fingerprint(self) -> bytes:
        shards = "".join(entry.sha256 for entry in self._manifest.shards)
        return hashlib.sha256(f"{shards}{self._wider}".encode()).digest()

    def cut(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        for shard in self._shards(pictures=True):
            landmarks = shard.landmarks
            yield shard.crops, points_as_wflw_98(landmarks, shard.weights)[0] if self._wider else landmarks

    def _shards(self, *, pictures: bool) -> Iterator[Shard]:
        for entry in self._manifest.shards:
            yield read_shard(self._folder / entry.file, self._wide.input_size, pictures=pictures)
