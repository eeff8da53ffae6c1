"""Whether a network agrees with the reference if it is fed otherwise than its contract says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import Face
from pfld_edge_calib.proof import ProofModel, Suspicion, find_landmarks
from pfld_edge_convert.diagnosis.finding import AGREES, Finding
from pfld_edge_runtime import Contract

__all__ = ["fed_otherwise"]

Points = NDArray[np.floating]

_RATIOS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6)
"""Crop scales, as multiples of the contract's."""


@dataclass(frozen=True, slots=True)
class _Trial:
    cause: str
    model: ProofModel
    sentence: str


def fed_otherwise(
    model: ProofModel, reference: Contract, faces: Sequence[Face], found: Points, expected: Points, truth: Points
) -> Iterator[Finding]:
    """Try the other order of colours, other crop scales, and exchanged coordinates.

    Args:
        model: The network that is off.
        reference: Contract of the network that it should agree with.
        faces: Some faces.
        found: ``(N, P, 2)`` its landmarks of those, pixels.
        expected: ``(N, P, 2)`` the reference's.
        truth: ``(N, P, 2)``; gives the eye distance.
    """
    first, second = reference.landmarks.normalizing_points
    eyes = np.linalg.norm(truth[:, first].astype(np.float64) - truth[:, second], axis=1)[:, None]

    def deviation(landmarks: Points) -> float:
        return float((np.linalg.norm(landmarks.astype(np.float64) - expected, axis=2) / eyes).mean())

    before = deviation(found)
    trials = [*_colors(model), *_margins(model, reference), *_exchanged(model)]
    answers = find_landmarks([trial.model for trial in trials], faces)
    after, best = min(((deviation(answer), i) for i, answer in enumerate(answers)), key=lambda pair: pair[0])
    if after <= AGREES * before:
        trial = trials[best]
        evidence: dict[str, float | str] = {"deviation": before, "fed otherwise": after}
        sentence = f"{trial.sentence} (mean deviation {after:.2g} instead of {before:.2g} of the eye distance)"
        yield Finding(Suspicion(trial.cause, sentence, evidence))


def _colors(model: ProofModel) -> Iterator[_Trial]:
    said = "rgb" if model.locate else model.contract.color_order
    other = "BGR" if said == "rgb" else "RGB"
    turned = _with_pictures(model, lambda pictures: np.ascontiguousarray(pictures[..., ::-1]))
    yield _Trial(
        "color",
        turned,
        f"RGB and BGR are exchanged: the file says {said.upper()}, but fed {other} it agrees with the checkpoint",
    )


def _margins(model: ProofModel, reference: Contract) -> Iterator[_Trial]:
    said = model.contract.crop.margin
    known = reference.crop.margin / said
    ratios = _RATIOS if abs(known - 1) < 1e-6 else (known, *_RATIOS)
    for ratio in ratios:
        margin = said * ratio
        if not 0.1 <= margin <= 10:
            continue
        told = f"the file says {said:g}, but with {margin:.3g} it agrees with the checkpoint"
        if model.locate is not None:
            cut = reference.crop.margin / ratio
            told = f"the graph cuts {cut:.3g} times the box, and agrees when boxes are scaled by {ratio:.3g}"
        yield _Trial("margin", _with_margin(model, ratio), f"the crop's margin is wrong: {told}")


def _exchanged(model: ProofModel) -> Iterator[_Trial]:
    predict = model.predict
    if predict is not None:
        turned = replace(model, predict=lambda crops: np.ascontiguousarray(predict(crops)[:, :, ::-1]))
        yield _Trial(
            "order", turned, "x and y are exchanged: with each pair turned round it agrees with the checkpoint"
        )


def _with_pictures(model: ProofModel, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> ProofModel:
    predict, locate = model.predict, model.locate
    if predict is not None:
        return replace(model, predict=lambda crops: predict(change(crops)))
    if locate is None:
        return model
    return replace(model, locate=lambda photo, boxes: locate(change(photo), boxes))


def _with_margin(model: ProofModel, ratio: float) -> ProofModel:
    locate = model.locate
    if locate is None:
        crop = replace(model.contract.crop, margin=model.contract.crop.margin * ratio)
        return replace(model, contract=model.contract.replace(crop=crop))
    return replace(model, locate=lambda photo, boxes: locate(photo, _scaled(boxes, ratio)))


def _scaled(boxes: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    centers, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * ratio
    return np.concatenate([centers - halves, centers + halves], axis=1)
