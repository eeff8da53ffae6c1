"""Likely causes of a deviation from the reference: order, colours, crop margin, INT8 scales, fingerprint."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import Face
from pfld_edge_calib.evaluation import EvaluatedModel, LikelyCause, ModelResult, Verdict, Verification, find_landmarks
from pfld_edge_convert.diagnosis.file_checks import Finding, FingerprintCheck, check_fingerprint, wrong_scale
from pfld_edge_runtime import Contract, LandmarkScheme

__all__ = ["diagnosed"]

Points = NDArray[np.floating]

_FLOAT_DEVIATION = 1e-4
"""Of the eye distance, at one landmark. Float files differ from their checkpoint by some 1e-6."""

_INT8_DEVIATION = 0.02
"""Of the eye distance, on average. What INT8 costs is below 0.01."""

_AGREES = 1 / 2
"""A cause is found where undoing it leaves no more than this share of the deviation."""

_FACES = 24
"""Enough to tell causes apart, few enough to try many."""

_SCALE_FACES = 8
"""Each of some hundred scales is tried with some tens of factors."""

_MARGIN_RATIOS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6)
"""Crop margins that are tried, as multiples of the contract's."""


def diagnosed(
    record: Verification,
    models: Sequence[EvaluatedModel],
    faces: Sequence[Face],
    starting: Callable[[str], object] | None = None,
) -> Verification:
    """Add likely causes to every network that deviates, and fail those where one was proven, if there is a budget.

    A file within the budget by chance is still not the file that was meant. A network that agrees with the reference
    costs one run on the seeded image.

    Args:
        record: A verification with a reference, its first network.
        models: The networks of the record, in its order.
        faces: The faces of the record.
        starting: Called with the name of each network that deviates and is looked into.
    """
    proofs = [record.models[0]]
    for proof, model in zip(record.models[1:], models[1:], strict=True):
        check = check_fingerprint(model)
        if _deviates(proof, check) or _contracts_differ(models[0], model):
            if starting is not None and proof.verdict is not Verdict.UNDECIDED:
                starting(proof.name)
            finding = next(_findings(record, proof, models[0].contract, model, faces, check), None)
            proof = proof if finding is None else _with(proof, finding, record)
        proofs.append(proof)
    return replace(record, models=tuple(proofs))


def _deviates(proof: ModelResult, check: FingerprintCheck | None) -> bool:
    if proof.deviation is None:
        return False
    if not np.isfinite(proof.deviation.mean) or (check is not None and check.changed):
        return True
    if not proof.kind.endswith("int8"):
        return proof.deviation.largest > _FLOAT_DEVIATION
    return proof.deviation.mean > _INT8_DEVIATION or proof.verdict in (Verdict.FAIL, Verdict.UNDECIDED)


def _contracts_differ(reference: EvaluatedModel, model: EvaluatedModel) -> bool:
    """Whether the contracts feed the two networks differently; an end-to-end graph takes RGB whatever is inside."""
    mine, theirs = model.contract, reference.contract
    colors = model.locate is None and mine.color_order != theirs.color_order
    return colors or mine.crop != theirs.crop


def _findings(
    record: Verification,
    proof: ModelResult,
    reference: Contract,
    model: EvaluatedModel,
    faces: Sequence[Face],
    check: FingerprintCheck | None,
) -> Iterator[Finding]:
    """From the cheapest check to the dearest; what only the fingerprint shows comes last."""
    rows = _some_faces(record, proof)
    found, expected = proof.landmarks[rows], record.models[0].landmarks[rows]
    some = [faces[row] for row in rows]
    if len(rows):
        eyes = _eye_distances(record.truth[rows], record.scheme)
        yield from _other_order(found, expected, eyes, record.scheme)
        yield from _other_input(model, reference, some, found, expected, eyes)
    far = proof.verdict is Verdict.FAIL or (proof.deviation is not None and proof.deviation.mean > _INT8_DEVIATION)
    if model.kind.endswith("int8") and (far or (check is not None and check.changed)):
        yield from wrong_scale(model, check, some[:_SCALE_FACES], expected[:_SCALE_FACES])
    if check is not None:
        yield from check.findings()


def _some_faces(record: Verification, proof: ModelResult) -> NDArray[np.int64]:
    """Rows of faces that both networks found, evenly spread over the set."""
    known = np.isfinite(proof.landmarks).all(axis=(1, 2)) & np.isfinite(record.models[0].landmarks).all(axis=(1, 2))
    rows = np.flatnonzero(known)
    chosen: NDArray[np.int64] = rows[np.unique(np.linspace(0, len(rows) - 1, min(_FACES, len(rows))).astype(int))]
    return chosen


def _eye_distances(truth: Points, scheme: LandmarkScheme) -> NDArray[np.float64]:
    """``(N, 1)`` distances of the two normalising points, pixels."""
    first, second = scheme.normalizing_points
    distances: NDArray[np.float64] = np.linalg.norm(truth[:, first].astype(np.float64) - truth[:, second], axis=1)
    return distances[:, None]


def _other_order(found: Points, expected: Points, eyes: Points, scheme: LandmarkScheme) -> Iterator[Finding]:
    """Assign each landmark to the reference's nearest: a permutation after which they agree is the cause."""
    from scipy.optimize import linear_sum_assignment

    apart = np.zeros((found.shape[1],) * 2)
    for points, others, eye in zip(found.astype(np.float64), expected.astype(np.float64), eyes, strict=True):
        apart += np.linalg.norm(points[:, None] - others[None], axis=2) / eye / len(eyes)
    order = linear_sum_assignment(apart)[1]
    before, after = float(np.diag(apart).mean()), float(apart[np.arange(len(order)), order].mean())
    moved = np.flatnonzero(order != np.arange(len(order)))
    if len(moved) and after <= _AGREES * before:
        sentence = f"the landmarks are in another order: {_described(order, moved, scheme)}"
        evidence: dict[str, float | str] = {
            "deviation": before,
            "reordered": after,
            "order": " ".join(map(str, order.tolist())),
        }
        yield Finding(LikelyCause("order", sentence, evidence))


def _described(order: NDArray[np.int64], moved: NDArray[np.int64], scheme: LandmarkScheme) -> str:
    count = len(order)
    if scheme.has_mirror and np.array_equal(order, scheme.mirror):
        return "left and right are exchanged"
    shift = int(order[0])
    if np.array_equal(order, (np.arange(count) + shift) % count):
        return f"its point i is point (i + {shift}) % {count} of the scheme {scheme.name!r}"
    pairs = ", ".join(f"{row} is {order[row]} ({scheme.names[order[row]]})" for row in moved[:4].tolist())
    return f"{len(moved)} of {count} points are elsewhere: its point {pairs}{', ...' if len(moved) > 4 else ''}"


@dataclass(frozen=True, slots=True)
class _Trial:
    """A model that is fed otherwise, and what it means if that agrees with the reference."""

    cause: str
    model: EvaluatedModel
    sentence: str


def _other_input(
    model: EvaluatedModel, reference: Contract, faces: Sequence[Face], found: Points, expected: Points, eyes: Points
) -> Iterator[Finding]:
    """Try the other order of colours, other crop margins, and exchanged coordinates.

    Args:
        model: The network that deviates.
        reference: Contract of the network that it should agree with.
        faces: Some faces.
        found: ``(N, P, 2)`` its landmarks of those, pixels.
        expected: ``(N, P, 2)`` the reference's.
        eyes: ``(N, 1)`` eye distances, pixels.
    """

    def deviation(landmarks: Points) -> float:
        return float((np.linalg.norm(landmarks.astype(np.float64) - expected, axis=2) / eyes).mean())

    before = deviation(found)
    trials = [*_colors(model), *_margins(model, reference), *_exchanged(model)]
    answers = find_landmarks([trial.model for trial in trials], faces)
    after, best = min(((deviation(answer), i) for i, answer in enumerate(answers)), key=lambda pair: pair[0])
    if after <= _AGREES * before:
        trial = trials[best]
        evidence: dict[str, float | str] = {"deviation": before, "fed otherwise": after}
        sentence = f"{trial.sentence} (mean deviation {after:.2g} instead of {before:.2g} of the eye distance)"
        yield Finding(LikelyCause(trial.cause, sentence, evidence))


def _colors(model: EvaluatedModel) -> Iterator[_Trial]:
    said = "rgb" if model.locate else model.contract.color_order
    other = "BGR" if said == "rgb" else "RGB"
    turned = _with_pictures(model, lambda pictures: np.ascontiguousarray(pictures[..., ::-1]))
    yield _Trial(
        "color",
        turned,
        f"RGB and BGR are exchanged: the file says {said.upper()}, but fed {other} it agrees with the checkpoint",
    )


def _margins(model: EvaluatedModel, reference: Contract) -> Iterator[_Trial]:
    said = model.contract.crop.margin
    known = reference.crop.margin / said
    ratios = _MARGIN_RATIOS if abs(known - 1) < 1e-6 else (known, *_MARGIN_RATIOS)
    for ratio in ratios:
        margin = said * ratio
        if not 0.1 <= margin <= 10:
            continue
        told = f"the file says {said:g}, but with {margin:.3g} it agrees with the checkpoint"
        if model.locate is not None:
            cut = reference.crop.margin / ratio
            told = f"the graph cuts {cut:.3g} times the box, and agrees when boxes are scaled by {ratio:.3g}"
        yield _Trial("margin", _with_margin(model, ratio), f"the crop's margin is wrong: {told}")


def _exchanged(model: EvaluatedModel) -> Iterator[_Trial]:
    predict = model.predict
    if predict is not None:
        turned = replace(model, predict=lambda crops: np.ascontiguousarray(predict(crops)[:, :, ::-1]))
        yield _Trial(
            "order", turned, "x and y are exchanged: with each pair turned round it agrees with the checkpoint"
        )


def _with_pictures(model: EvaluatedModel, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> EvaluatedModel:
    predict, locate = model.predict, model.locate
    if predict is not None:
        return replace(model, predict=lambda crops: predict(change(crops)))
    if locate is None:
        return model
    return replace(model, locate=lambda photo, boxes: locate(change(photo), boxes))


def _with_margin(model: EvaluatedModel, ratio: float) -> EvaluatedModel:
    locate = model.locate
    if locate is None:
        crop = replace(model.contract.crop, margin=model.contract.crop.margin * ratio)
        return replace(model, contract=model.contract.replace(crop=crop))
    return replace(model, locate=lambda photo, boxes: locate(photo, _scaled(boxes, ratio)))


def _scaled(boxes: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    centers, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * ratio
    return np.concatenate([centers - halves, centers + halves], axis=1)


def _with(proof: ModelResult, finding: Finding, record: Verification) -> ModelResult:
    changed = replace(proof, suspicions=(finding.suspicion,))
    if not finding.proven or record.settings.max_drift is None or proof.verdict is Verdict.FAIL:
        return changed
    reason = f"{proof.reason}, but the file is not right: see the likely cause" if proof.reason else ""
    return replace(changed, verdict=Verdict.FAIL, reason=reason)
