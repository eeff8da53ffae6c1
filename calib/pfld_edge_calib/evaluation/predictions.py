"""Predictions of models for annotated faces: of a unit as bytes, and of a set of any size in mapped files."""

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.units import Unit, unit_faces
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.find_landmarks import find_landmarks, true_landmarks
from pfld_edge_runtime import LandmarkModel

_BATCH = 64
"""Faces in memory at a time; the models' batch size, so that every way to run them gives the same bytes."""


@dataclass(frozen=True, slots=True)
class FacePredictions:
    """Annotations and predictions of N faces in order; as bytes a few hundred a face and model.

    Attributes:
        images: Paths of their photographs; in a shard the shard's path joined with the member's name.
        attributes: Attributes of each face.
        boxes: ``(N, 4)`` float64 x0, y0, x1, y1 in photograph pixels, that models were given; NaN where missed.
        truth: ``(N, P, 2)`` float32 photograph pixels; NaN where a point is unlabelled.
        found: The same shape for each model; NaN for missed faces.
    """

    images: tuple[str, ...]
    attributes: tuple[frozenset[str], ...]
    boxes: NDArray[np.float64]
    truth: NDArray[np.float32]
    found: tuple[NDArray[np.float32], ...]

    def to_bytes(self) -> bytes:
        """Pack into the bytes of an ``.npz`` file; equal faces give equal bytes."""
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
    def from_bytes(cls, data: bytes) -> "FacePredictions":
        """Unpack the bytes that `to_bytes` gave.

        Raises:
            ValueError: They are something else.
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


def predict_unit(models: Sequence[LandmarkModel], unit: Unit) -> FacePredictions:
    """Predict the landmarks of a unit's faces with each model; photographs are kept for one batch only.

    Raises:
        FaceSetError: A photograph is damaged, or a face has another number of landmarks than the models.
    """
    contract = models[0].contract
    images: list[str] = []
    attributes: list[frozenset[str]] = []
    boxes = [np.zeros((0, 4))]
    landmarks = [[np.zeros((0, contract.landmarks.num_landmarks, 2), np.float32)] for _ in range(1 + len(models))]
    faces = unit_faces(unit)
    while batch := list(islice(faces, _BATCH)):
        new = [true_landmarks(batch, contract), *find_landmarks(models, batch)]
        for kept, more in zip(landmarks, new, strict=True):
            kept.append(more)
        images += [str(face.image) for face in batch]
        attributes += [face.attributes for face in batch]
        boxes += [face.bbox_xyxy[None] for face in batch]
    truth, *found = (np.concatenate(kept) for kept in landmarks)
    return FacePredictions(tuple(images), tuple(attributes), np.concatenate(boxes), truth, tuple(found))


def join_units(parts: Iterable[FacePredictions], models: int, points: int, folder: Path) -> FacePredictions:
    """Join the predictions of units; the result's landmarks are mapped files.

    Args:
        parts: In order.
        models: Number of models.
        points: Landmarks a face.
        folder: For the files of landmarks; must outlive the result.

    Raises:
        FaceSetError: There is no face.
    """
    images: list[str] = []
    kinds: dict[frozenset[str], frozenset[str]] = {}  # equal sets of attributes are kept once
    attributes: list[frozenset[str]] = []
    boxes: list[NDArray[np.float64]] = []
    paths = [folder / "truth.f32", *(folder / f"found{i}.f32" for i in range(models))]
    for part in parts:
        if not images:  # not earlier: a folder of results inside of which `folder` lies must be new
            folder.mkdir(parents=True, exist_ok=True)
            for path in paths:
                path.unlink(missing_ok=True)
        for path, landmarks in zip(paths, (part.truth, *part.found), strict=True):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(landmarks, "<f4").data)
        images += part.images
        attributes += [kinds.setdefault(names, names) for names in part.attributes]
        boxes.append(part.boxes)
    if not images:
        raise FaceSetError("there is no face in the set")
    truth, *found = (np.memmap(path, "<f4", "r", shape=(len(images), points, 2)) for path in paths)
    return FacePredictions(tuple(images), tuple(attributes), np.concatenate(boxes), truth, tuple(found))
