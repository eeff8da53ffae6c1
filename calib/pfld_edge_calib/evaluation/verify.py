"""Runs models over annotated faces and compares them with a reference."""

from collections.abc import Callable, Sequence, Set
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.wflw import WFLW_ATTRIBUTES
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.evaluation.deviation import measure_deviation
from pfld_edge_calib.evaluation.drift import Verdict, judge, mean_interval, paired_drift
from pfld_edge_calib.evaluation.metrics import accuracy_by_subset, face_errors, normalizing_distance
from pfld_edge_calib.evaluation.verification import ModelResult, PairedDrift, Verification, VerificationSettings
from pfld_edge_calib.face import Face
from pfld_edge_calib.landmark_model import EvaluatedModel, find_landmarks, shared_scheme, true_landmarks
from pfld_edge_runtime.geometry.landmarks import tight_box

__all__ = ["assemble", "measured_record", "subset_order", "verify_models"]


def verify_models(
    models: Sequence[EvaluatedModel],
    faces: Sequence[Face],
    settings: VerificationSettings,
    *,
    compare: bool = True,
    cut_by: Sequence[Face] | None = None,
    refine: int = 0,
    advance: Callable[[int], object] | None = None,
) -> Verification:
    """Run models over annotated faces, and compare the others with the first.

    Args:
        models: At least one, all of one landmark scheme.
        faces: At least one.
        settings: Settings of the verification.
        compare: Whether the first model is the reference; otherwise each is evaluated by itself.
        cut_by: The same faces with the boxes that models are given, e.g. a detector's; NaN where it missed.
        refine: Number of further passes, each with the tight box of the landmarks that the model predicted before.
        advance: Called with the number of faces done.

    Raises:
        ModelContractError: The models have different landmark schemes.
        FaceSetError: A face has no landmarks, or another number than the models, or a photograph can't be read.
    """
    shared_scheme(models)
    true_landmarks(faces, models[0].contract)  # fails before the long part
    given = faces if cut_by is None else cut_by
    found = find_landmarks(models, given, advance)
    for _ in range(refine):
        found = [_refined(model, landmarks, faces) for model, landmarks in zip(models, found, strict=True)]
    return assemble(models, found, faces, settings, compare=compare, cut_by=cut_by)


def _refined(model: EvaluatedModel, landmarks: NDArray[np.float32], faces: Sequence[Face]) -> NDArray[np.float32]:
    """Predict again, in the tight boxes of the landmarks; missed faces stay missed."""
    boxes = tight_box(landmarks)
    return find_landmarks([model], [replace(face, bbox_xyxy=box) for face, box in zip(faces, boxes, strict=True)])[0]


def assemble(
    models: Sequence[EvaluatedModel],
    found: Sequence[NDArray[np.float32]],
    faces: Sequence[Face],
    settings: VerificationSettings,
    *,
    compare: bool = True,
    cut_by: Sequence[Face] | None = None,
) -> Verification:
    """Evaluate landmarks that were predicted already.

    Args:
        models: At least one.
        found: Of each model ``(N, P, 2)`` float32 pixels; NaN where a face was missed.
        faces: The N faces.
        settings: Settings of the verification.
        compare: As for `verify_models`.
        cut_by: As for `verify_models`.
    """
    names = subset_order(set().union(*(face.attributes for face in faces)))
    given = faces if cut_by is None else cut_by
    record = Verification(
        faces=tuple(str(face.image) for face in faces),
        photographs=np.unique([str(face.image) for face in faces], return_inverse=True)[1].astype(np.int64),
        subset_names=names,
        subsets=np.array([[name in face.attributes for name in names] for face in faces], bool).reshape(len(faces), -1),
        truth=true_landmarks(faces, models[0].contract),
        boxes=np.stack([face.bbox_xyxy for face in given]),
        scheme=models[0].contract.landmarks,
        models=(),
        settings=settings,
    )
    return measured_record(record, models, found, compare=compare)


def measured_record(
    record: Verification,
    models: Sequence[EvaluatedModel],
    found: Sequence[NDArray[np.float32]],
    *,
    compare: bool = True,
) -> Verification:
    """Evaluate models for a record that has faces but no models.

    Args:
        record: Without models; NaN in its truth marks unlabelled points.
        models: At least one.
        found: Of each model ``(N, P, 2)`` float32 pixels; NaN where a face was missed.
        compare: As for `verify_models`.
    """
    first, second = record.scheme.normalizing_points
    measurable = np.isfinite(normalizing_distance(record.truth, [first], [second]))
    if not measurable.any():
        raise FaceSetError(f"no face has an NME: points {first} and {second} are unlabelled or coincide in all of them")
    results: list[ModelResult] = []
    for model, landmarks in zip(models, found, strict=True):
        result = _measured(model, landmarks, record)
        if compare:
            result = _compared(result, results[0], record) if results else replace(result, verdict=Verdict.REFERENCE)
        else:
            result = _evaluated(result, record)
        results.append(result)
    left_out = tuple(record.faces[row] for row in np.flatnonzero(~measurable))
    return replace(record, models=tuple(results), truth=_filled(record.truth), left_out=left_out)


def _filled(truth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move unlabelled points from NaN to the mean of the face's labelled ones, for pictures."""
    rows = np.flatnonzero(np.isnan(truth).any(axis=(1, 2)))
    if not len(rows):
        return truth
    result = np.array(truth)
    for row in rows:
        labelled = np.isfinite(result[row]).all(axis=1)
        result[row, ~labelled] = result[row, labelled].mean(axis=0) if labelled.any() else 0
    return result


def _measured(model: EvaluatedModel, landmarks: NDArray[np.float32], record: Verification) -> ModelResult:
    errors = face_errors(landmarks, record.truth, record.scheme)
    return ModelResult(
        name=model.name,
        path=model.path,
        kind=model.kind,
        sha256=model.sha256,
        contract=model.contract,
        assumed=model.assumed,
        landmarks=landmarks,
        errors=errors,
        accuracy=accuracy_by_subset(errors, record.subset_names, record.subsets),
    )


def _evaluated(result: ModelResult, record: Verification) -> ModelResult:
    """Add intervals of the NME and deviations from the annotation."""
    resamples, seed, nmes = record.settings.resamples, record.settings.seed, result.errors.ocular
    intervals = {
        name: mean_interval(nmes[some], record.photographs[some], resamples=resamples, seed=seed)
        for name, some in _subset_masks(record).items()
    }
    error = measure_deviation(result.landmarks, record.truth, record.truth, record.scheme)
    known = {name: interval for name, interval in intervals.items() if interval is not None}
    return replace(result, error=error, nme_intervals=known)


def _subset_masks(record: Verification) -> dict[str, NDArray[np.bool_]]:
    """``(N,)`` masks of all faces and of each subset that has any."""
    subsets = {name: record.subsets[:, i] for i, name in enumerate(record.subset_names) if record.subsets[:, i].any()}
    return {"all": np.ones(len(record.faces), bool), **subsets}


def _compared(result: ModelResult, reference: ModelResult, record: Verification) -> ModelResult:
    settings = record.settings
    estimates = {
        name: paired_drift(
            result.errors.ocular[some],
            reference.errors.ocular[some],
            record.photographs[some],
            resamples=settings.resamples,
            seed=settings.seed,
        )
        for name, some in _subset_masks(record).items()
    }
    overall = estimates.pop("all")
    verdict, reason = judge(overall, settings.max_drift)
    lost = result.accuracy["all"].misses - reference.accuracy["all"].misses
    if lost > 0 and settings.max_drift is not None:
        verdict, reason = Verdict.FAIL, f"it gives no numbers for {lost} of {len(record.faces)} faces"
    return replace(
        result,
        drift=PairedDrift(overall, estimates),
        deviation=measure_deviation(result.landmarks, reference.landmarks, record.truth, record.scheme),
        verdict=verdict,
        reason=reason,
    )


def subset_order(known: Set[str]) -> tuple[str, ...]:
    """Sort attribute names: WFLW's six in their order, then others by name."""
    ours = [name for name in WFLW_ATTRIBUTES if name in known]
    return (*ours, *sorted(known - set(ours)))
