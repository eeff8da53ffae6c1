"""Runs networks over damaged faces."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.face import Face
from pfld_edge_calib.metrics import nme_per_face
from pfld_edge_calib.photo import read_photo
from pfld_edge_calib.proof import ProofModel
from pfld_edge_calib.robustness.damages import DAMAGES, Damage
from pfld_edge_calib.robustness.patch import FacePatch, face_patch
from pfld_edge_runtime import CropWindows, crop_faces, crop_windows

__all__ = ["Curve", "Robustness", "measure_robustness"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """The error under one kind of damage.

    Attributes:
        name: Of the damage.
        unit: Of the strengths.
        strengths: K of them.
        nmes: ``(M, K)``, of each network at each strength; NaN where it gave no numbers.
    """

    name: str
    unit: str
    strengths: tuple[float, ...]
    nmes: Float

    def with_clean(self, clean: Float) -> tuple[list[str], Float]:
        """Put the undamaged faces where they belong: first, or amid factors that go both ways.

        Args:
            clean: ``(M,)``, see `Robustness`.

        Returns:
            K + 1 labels, and ``(M, K + 1)`` errors.
        """
        place = sum(strength < 1 for strength in self.strengths) if min(self.strengths) < 1 < max(self.strengths) else 0
        labels = [f"{strength:g}" for strength in self.strengths]
        return [*labels[:place], "none", *labels[place:]], np.insert(self.nmes, place, clean, axis=1)


@dataclass(frozen=True, slots=True)
class Robustness:
    """What damage does to networks.

    Attributes:
        models: M names.
        faces: How many were damaged.
        clean: ``(M,)`` NME of the faces at the size at which they are damaged, undamaged.
        curves: One a damage.
    """

    models: tuple[str, ...]
    faces: int
    clean: Float
    curves: tuple[Curve, ...]


def measure_robustness(
    models: Sequence[ProofModel],
    faces: Sequence[Face],
    advance: Callable[[int], object] | None = None,
    *,
    damages: Sequence[Damage] = DAMAGES,
    seed: int = 0,
) -> Robustness:
    """Measure the NME under each damage at each strength.

    Every network sees the same pixels. What chance decides depends on the seed, the face and the damage alone.

    Args:
        models: M networks of one landmark scheme.
        faces: With landmarks; those with a box of NaN are left out.
        advance: Called with the number of faces done.
        damages: Which ones.
        seed: Of all that is random.

    Raises:
        FaceSetError: A photograph can't be read.
    """
    points = models[0].contract.landmarks.normalizing_points
    total = np.zeros((len(models), 1 + sum(len(damage.strengths) for damage in damages)))
    count = 0
    for patch, number in _patches(faces):
        variants = [patch]
        for place, damage in enumerate(damages):
            variants += [
                damage.apply(patch, strength, np.random.default_rng([seed, number, place]))
                for strength in damage.strengths
            ]
        truth = np.stack([variant.landmarks for variant in variants])
        for row, found in enumerate(_found(models, variants)):
            total[row] += nme_per_face(found, truth, points)
        count += 1
        if advance is not None:
            advance(1)
    means = total / count if count else np.full_like(total, np.nan)
    curves, start = [], 1
    for damage in damages:
        end = start + len(damage.strengths)
        curves.append(Curve(damage.name, damage.unit, damage.strengths, means[:, start:end]))
        start = end
    return Robustness(tuple(model.name for model in models), count, means[:, 0], tuple(curves))


def _patches(faces: Sequence[Face]) -> Iterator[tuple[FacePatch, int]]:
    """Yield each face's patch and number; a photograph is read once for the faces that follow each other."""
    numbered = [(number, face) for number, face in enumerate(faces) if np.isfinite(face.bbox_xyxy).all()]
    for path, group in groupby(numbered, key=lambda item: item[1].image):
        photo = read_photo(path)
        for number, face in group:
            yield face_patch(photo, face), number


def _found(models: Sequence[ProofModel], variants: Sequence[FacePatch]) -> Iterator[NDArray[np.float64]]:
    """Yield each network's landmarks of all variants, ``(V, P, 2)`` pixels of the patches."""
    cuts: dict[tuple[int, float], tuple[NDArray[np.uint8], CropWindows]] = {}
    for model in models:
        if model.locate is not None:
            found = [model.locate(variant.image, variant.box[None])[0] for variant in variants]
            yield np.stack(found).astype(np.float64)
            continue
        contract = model.contract
        key = contract.input_size, contract.crop.margin
        if key not in cuts:
            windows = crop_windows(np.stack([variant.box for variant in variants]), contract.crop.margin)
            single = (CropWindows(windows.corners[i : i + 1], windows.sizes[i : i + 1]) for i in range(len(variants)))
            cut = [
                crop_faces(variant.image, window, contract.input_size)[0]
                for variant, window in zip(variants, single, strict=True)
            ]
            cuts[key] = np.stack(cut), windows
        crops, windows = cuts[key]
        if model.predict is None:
            raise ValueError(f"{model.name} answers neither crops nor photographs")
        ordered = crops if contract.color_order == "bgr" else np.ascontiguousarray(crops[..., ::-1])
        yield windows.to_image(model.predict(ordered)).astype(np.float64)
