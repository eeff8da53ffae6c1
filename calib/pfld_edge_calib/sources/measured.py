"""What networks found in a unit's faces, and what was known: small, so that it can be kept and sent."""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.evaluate import true_landmarks
from pfld_edge_calib.face import Face
from pfld_edge_calib.proof import ProofModel, find_landmarks
from pfld_edge_calib.sources.unit import SourcePhoto, Unit

__all__ = ["MeasuredFaces", "measure_unit", "measured_faces"]

_BATCH = 64
"""Faces in memory at a time; as many as networks get at once, so that every way to run them finds the same bytes."""


@dataclass(frozen=True, slots=True)
class MeasuredFaces:
    """N faces, in order; a few hundred bytes a face and network.

    Attributes:
        images: Paths of their photographs; in a shard the shard's path and the photograph's name in it.
        attributes: What the set says of each.
        boxes: ``(N, 4)`` float64 x0, y0, x1, y1 in photograph pixels.
        truth: ``(N, P, 2)`` float32 photograph pixels.
        found: The same shape from each network.
    """

    images: tuple[str, ...]
    attributes: tuple[frozenset[str], ...]
    boxes: NDArray[np.float64]
    truth: NDArray[np.float32]
    found: tuple[NDArray[np.float32], ...]

    def to_bytes(self) -> bytes:
        """Write everything; the same faces give the same bytes."""
        known = {"images": self.images, "attributes": [sorted(names) for names in self.attributes]}
        arrays = {
            "known": np.frombuffer(json.dumps(known).encode(), np.uint8),
            "boxes": self.boxes,
            "truth": self.truth,
            **{f"found{i}": landmarks for i, landmarks in enumerate(self.found)},
        }
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "MeasuredFaces":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                known = json.loads(arrays["known"].tobytes())
                boxes, truth = arrays["boxes"], arrays["truth"]
                found = tuple(arrays[name] for name in arrays.files if name.startswith("found"))
        except (zipfile.BadZipFile, KeyError, EOFError) as error:
            raise ValueError(f"not measured faces ({error})") from error
        attributes = tuple(frozenset(names) for names in known["attributes"])
        return cls(tuple(known["images"]), attributes, boxes, truth, found)


def measure_unit(models: Sequence[ProofModel], unit: Unit) -> MeasuredFaces:
    """Find the landmarks of a unit's faces with each network.

    Raises:
        FaceSetError: A photograph is damaged, or a face has other landmarks than the networks find.
    """
    return measured_faces(models, (face for photo in unit.photos() for face in _faces(photo)))


def measured_faces(models: Sequence[ProofModel], faces: Iterable[Face]) -> MeasuredFaces:
    """Find the landmarks of faces that come one after the other; their photographs are kept for a batch only."""
    contract = models[0].contract
    none = np.zeros((0, contract.landmarks.num_landmarks, 2), np.float32)
    images: list[str] = []
    attributes: list[frozenset[str]] = []
    boxes, truth = [np.zeros((0, 4))], [none]
    found = [[none] for _ in models]
    for batch in _batches(iter(faces)):
        truth.append(true_landmarks(batch, contract))
        for kept, landmarks in zip(found, find_landmarks(models, batch), strict=True):
            kept.append(landmarks)
        images += [str(face.image) for face in batch]
        attributes += [face.attributes for face in batch]
        boxes += [face.bbox_xyxy[None] for face in batch]
    return MeasuredFaces(
        tuple(images),
        tuple(attributes),
        np.concatenate(boxes),
        np.concatenate(truth),
        tuple(np.concatenate(kept) for kept in found),
    )


def _faces(photo: SourcePhoto) -> tuple[Face, ...]:
    if photo.faces is None:
        raise FaceSetError(f"{photo.image}: no landmarks beside it, so there is nothing to measure by")
    return photo.faces


def _batches(faces: Iterator[Face]) -> Iterator[list[Face]]:
    while batch := list(islice(faces, _BATCH)):
        yield batch
