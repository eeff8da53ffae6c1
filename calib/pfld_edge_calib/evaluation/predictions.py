"""Predictions of models for annotated faces: of a unit as bytes, and of a set of any size in mapped files."""

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face, Unit, unit_faces
from pfld_edge_calib.find_landmarks import comparable, find_landmarks, true_landmarks
from pfld_edge_calib.photo import UnusableFaces, folder_hint
from pfld_edge_runtime import LandmarkModel
from pfld_edge_runtime.arrays import Float32Array, Float64Array

_BATCH = 64
"""Faces in memory at a time; the models' batch size, so that every way to run them gives the same bytes."""


@dataclass(frozen=True, slots=True)
class FacePredictions:
    """Annotations and predictions of N faces in order; as bytes a few hundred a face and model.

    Models were given the ``(N, 4)`` `boxes`, x0 y0 x1 y1 in pixels, NaN where missed. `truth` and what each model
    `found` are ``(N, P, 2)`` float32 pixels, NaN for unlabelled points and missed faces. `outside` are the photographs
    of further faces, one a face, that lie wholly outside of them; `unreadable` says for each further face whose
    photograph can't be read, and each damaged member of a shard, why.
    """

    images: tuple[str, ...]
    attributes: tuple[frozenset[str], ...]
    boxes: Float64Array
    truth: Float32Array
    found: tuple[Float32Array, ...]
    outside: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        faces: Sequence[Face],
        truth: Float32Array,
        found: Sequence[Float32Array],
        unusable: UnusableFaces,
    ) -> "FacePredictions":
        """Collect the predictions of the faces that are usable, and count the others."""
        rows = unusable.others(range(len(faces)))
        return cls(
            tuple(str(faces[row].image) for row in rows),
            tuple(faces[row].attributes for row in rows),
            np.array([faces[row].bbox_xyxy for row in rows], np.float64).reshape(-1, 4),
            truth[rows],
            tuple(landmarks[rows] for landmarks in found),
            tuple(str(faces[row].image) for row in sorted(unusable.outside)),
            tuple(unusable.unreadable[row] for row in sorted(unusable.unreadable)),
        )

    def to_bytes(self) -> bytes:
        """Pack into the bytes of an ``.npz`` file; equal faces give equal bytes."""
        known = {
            "images": self.images,
            "attributes": [sorted(names) for names in self.attributes],
            "outside": self.outside,
            "unreadable": self.unreadable,
        }
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
        """Unpack the bytes that `to_bytes` gave; raises ValueError where they are something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                known = json.loads(arrays["known"].tobytes())
                boxes, truth = arrays["boxes"], arrays["truth"]
                found = tuple(arrays[name] for name in arrays.files if name.startswith("found"))
        except (zipfile.BadZipFile, KeyError, EOFError) as error:
            raise ValueError(f"not measured faces ({error})") from error
        attributes = tuple(frozenset(names) for names in known["attributes"])
        left_out = tuple(known["outside"]), tuple(known["unreadable"])
        return cls(tuple(known["images"]), attributes, boxes, truth, found, *left_out)


def predict_unit(models: Sequence[LandmarkModel], unit: Unit) -> FacePredictions:
    """Predict the landmarks of a unit's faces with each model; photographs are kept for one batch only.

    Photographs that can't be read, members of shards that are damaged, and their faces without landmarks are in the
    result's `unreadable`; a damaged line of a list is a FaceSetError.
    """
    contract = models[0].contract
    none = np.zeros((0, contract.landmarks.num_landmarks, 2), np.float32)
    parts = [FacePredictions((), (), np.zeros((0, 4)), none, (none,) * len(models))]
    damaged: list[FaceSetError] = []
    faces = comparable(unit_faces(unit, damaged.append), contract, damaged.append)
    while batch := list(islice(faces, _BATCH)):
        unusable = UnusableFaces(lambda _error: None)
        predicted = find_landmarks(models, batch, unusable=unusable)
        parts.append(FacePredictions.of(batch, true_landmarks(batch, contract), predicted, unusable))
    truth = np.concatenate([part.truth for part in parts])
    found = tuple(map(np.concatenate, zip(*(part.found for part in parts), strict=True)))
    joined = _joined(parts, truth, found)
    return replace(joined, unreadable=(*joined.unreadable, *map(str, damaged)))


def _joined(parts: Sequence[FacePredictions], truth: Float32Array, found: tuple[Float32Array, ...]) -> FacePredictions:
    """Join all but the landmarks, which are given."""
    return FacePredictions(
        tuple(chain.from_iterable(part.images for part in parts)),
        tuple(chain.from_iterable(part.attributes for part in parts)),
        np.concatenate([part.boxes for part in parts]),
        truth,
        found,
        tuple(chain.from_iterable(part.outside for part in parts)),
        tuple(chain.from_iterable(part.unreadable for part in parts)),
    )


def join_units(parts: Iterable[FacePredictions], models: int, points: int, folder: Path) -> FacePredictions:
    """Join the predictions of units; the landmarks are mapped files in `folder`, which must outlive the result.

    `models` and `points` are the numbers of models and of landmarks a face. FaceSetError where no face can be measured.
    """
    kinds: dict[frozenset[str], frozenset[str]] = {}  # equal sets of attributes are kept once
    light: list[FacePredictions] = []
    paths = [folder / "truth.f32", *(folder / f"found{i}.f32" for i in range(models))]
    for part in parts:
        if not light:  # not earlier: a folder of results inside of which `folder` lies must be new
            folder.mkdir(parents=True, exist_ok=True)
            for path in paths:
                path.unlink(missing_ok=True)
        for path, landmarks in zip(paths, (part.truth, *part.found), strict=True):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(landmarks, "<f4").data)
        attributes = tuple(kinds.setdefault(names, names) for names in part.attributes)
        light.append(replace(part, attributes=attributes, truth=part.truth[:0].copy(), found=()))
    count = sum(len(part.images) for part in light)
    if not count:
        outside, unreadable = ([text for part in light for text in getattr(part, n)] for n in ("outside", "unreadable"))
        raise no_face_left(outside, unreadable)
    truth, *found = (np.memmap(path, "<f4", "r", shape=(count, points, 2)) for path in paths)
    return _joined(light, truth, tuple(found))


def no_face_left(outside: Sequence[str], unreadable: Sequence[str]) -> FaceSetError:
    """Make the error of a set in which no face can be measured; the arguments are those of `FacePredictions`."""
    if not outside and not unreadable:
        return FaceSetError("there is no face in the set")
    reasons = [
        *([f"{len(unreadable)} are in photographs that can't be read ({unreadable[0]})"] if unreadable else []),
        *([f"{len(outside)} lie outside of their photographs ({outside[0]})"] if outside else []),
    ]
    count, hint = len(outside) + len(unreadable), "" if outside else folder_hint(unreadable)
    return FaceSetError(f"no face of {count} can be measured: {', '.join(reasons)}{hint}")
