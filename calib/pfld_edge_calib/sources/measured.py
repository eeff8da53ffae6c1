"""What networks found in a unit's faces, and what was known: small, so that it can be kept and sent."""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.evaluate import CropPredictor, true_landmarks
from pfld_edge_calib.face import Face
from pfld_edge_calib.face_crops import cut_faces
from pfld_edge_calib.sources.unit import Unit
from pfld_edge_runtime import Contract

__all__ = ["MeasuredFaces", "measure_unit", "measured_faces"]

_BATCH = 64
"""Faces in memory at a time; as many as `predict_landmarks` gives a network, so that both find the same bytes."""


@dataclass(frozen=True, slots=True)
class MeasuredFaces:
    """N faces, in order.

    Attributes:
        faces: What is known of them, without their photographs.
        truth: ``(N, P, 2)`` float32 photograph pixels.
        predicted: The same shape from each network.
    """

    faces: tuple[Face, ...]
    truth: NDArray[np.float32]
    predicted: tuple[NDArray[np.float32], ...]

    def to_bytes(self) -> bytes:
        """Write everything; the same faces give the same bytes."""
        known = [[str(face.image), face.group, sorted(face.attributes), face.weight] for face in self.faces]
        arrays = {
            "known": np.frombuffer(json.dumps(known).encode(errors="surrogateescape"), np.uint8),
            "boxes": np.array([face.bbox_xyxy for face in self.faces]).reshape(-1, 4),
            "truth": self.truth,
            **{f"predicted{i}": found for i, found in enumerate(self.predicted)},
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
                known = json.loads(arrays["known"].tobytes().decode(errors="surrogateescape"))
                boxes, truth = arrays["boxes"], arrays["truth"]
                predicted = tuple(arrays[name] for name in arrays.files if name.startswith("predicted"))
        except (zipfile.BadZipFile, KeyError, EOFError) as error:
            raise ValueError(f"not measured faces ({error})") from error
        faces = [
            Face(Path(image), box, points, frozenset(attributes), weight, group=group)
            for (image, group, attributes, weight), box, points in zip(known, boxes, truth, strict=True)
        ]
        return cls(tuple(faces), truth, predicted)


def measure_unit(networks: Sequence[tuple[CropPredictor, Contract]], unit: Unit) -> MeasuredFaces:
    """Find the landmarks of a unit's faces with each network.

    Raises:
        FaceSetError: A photograph is damaged, or a face has other landmarks than the networks find.
    """
    return measured_faces(networks, (face for photo in unit.photos() for face in photo.faces or ()))


def measured_faces(networks: Sequence[tuple[CropPredictor, Contract]], faces: Iterable[Face]) -> MeasuredFaces:
    """Find the landmarks of faces that come one after the other; photographs are kept for a batch only."""
    kept: list[Face] = []
    truth: list[NDArray[np.float32]] = []
    found: list[list[NDArray[np.float32]]] = [[] for _ in networks]
    for batch in _batches(iter(faces)):
        for _, contract in networks:
            known = true_landmarks(batch, contract)
        truth.append(known)
        crops = {}
        for landmarks, (predict, contract) in zip(found, networks, strict=True):
            cut = (contract.input_size, contract.color_order, contract.crop)
            if cut not in crops:
                (crops[cut],) = cut_faces(batch, contract, _BATCH)
            landmarks.append(crops[cut].windows.to_image(predict(crops[cut].crops)))
        kept += [_without_photo(face) for face in batch]
    points = networks[0][1].landmarks.num_landmarks
    none = np.zeros((0, points, 2), np.float32)
    return MeasuredFaces(
        tuple(kept), np.concatenate([none, *truth]), tuple(np.concatenate([none, *landmarks]) for landmarks in found)
    )


def _batches(faces: Iterator[Face]) -> Iterator[list[Face]]:
    while batch := list(islice(faces, _BATCH)):
        yield batch


def _without_photo(face: Face) -> Face:
    return Face(face.image, face.bbox_xyxy, face.landmarks, face.attributes, face.weight, group=face.group)
