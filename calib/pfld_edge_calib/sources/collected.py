"""The results of all units as arrays, kept in files: as many faces as a disk holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.proof import subset_order
from pfld_edge_calib.sources.measured import MeasuredFaces

__all__ = ["CollectedFaces", "collect"]


@dataclass(frozen=True, slots=True)
class CollectedFaces:
    """All N faces of a set; see `MeasuredFaces`. The arrays of landmarks are mapped files.

    Attributes:
        images: Paths of the photographs.
        photographs: ``(N,)`` int64, faces of one photograph share one.
        attribute_names: S attributes that occur, in the order of `subset_order`.
        members: ``(N, S)`` which face has which.
        boxes: ``(N, 4)`` float64 pixels.
        truth: ``(N, P, 2)`` float32 pixels.
        found: The same shape from each network.
    """

    images: tuple[str, ...]
    photographs: NDArray[np.int64]
    attribute_names: tuple[str, ...]
    members: NDArray[np.bool_]
    boxes: NDArray[np.float64]
    truth: NDArray[np.float32]
    found: tuple[NDArray[np.float32], ...]


def collect(parts: Iterable[MeasuredFaces], networks: int, points: int, folder: Path) -> CollectedFaces:
    """Join units.

    Args:
        parts: In order.
        networks: How many looked at each face.
        points: Landmarks of a face.
        folder: Where the landmarks go; must outlive the result.

    Raises:
        FaceSetError: There is no face.
    """
    images: list[str] = []
    photographs: list[int] = []
    numbers: dict[str, int] = {}
    kinds: dict[frozenset[str], int] = {}
    kind_of_face: list[int] = []
    boxes: list[NDArray[np.float64]] = []
    files = [folder / "truth.f32", *(folder / f"found{i}.f32" for i in range(networks))]
    for part in parts:
        if not images:
            folder.mkdir(parents=True, exist_ok=True)
            for path in files:
                path.unlink(missing_ok=True)
        for path, landmarks in zip(files, (part.truth, *part.found), strict=True):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(landmarks, "<f4").data)
        images += part.images
        photographs += [numbers.setdefault(image, len(numbers)) for image in part.images]
        kind_of_face += [kinds.setdefault(attributes, len(kinds)) for attributes in part.attributes]
        boxes.append(part.boxes)
    if not images:
        raise FaceSetError("there is no face in the set")
    names = subset_order(set().union(*kinds))
    table = np.array([[name in kind for name in names] for kind in kinds], bool).reshape(len(kinds), -1)
    shape = (len(images), points, 2)
    mapped = [np.memmap(path, "<f4", "r", shape=shape) for path in files]
    return CollectedFaces(
        tuple(images),
        np.array(photographs, np.int64),
        names,
        table[kind_of_face],
        np.concatenate(boxes),
        mapped[0],
        tuple(mapped[1:]),
    )
