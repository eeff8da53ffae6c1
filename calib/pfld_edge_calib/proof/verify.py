"""From networks and faces to a verification."""

from collections.abc import Callable, Sequence, Set
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.evaluate import true_landmarks
from pfld_edge_calib.face import Face
from pfld_edge_calib.proof.deviation import measure_deviation
from pfld_edge_calib.proof.figures import face_errors, figures_by_subset
from pfld_edge_calib.proof.found import find_landmarks
from pfld_edge_calib.proof.interval import mean_interval, paired_drift
from pfld_edge_calib.proof.model import ProofModel
from pfld_edge_calib.proof.result import ModelProof, PairedDrift, Settings, Verdict, Verification
from pfld_edge_calib.proof.verdict import judge
from pfld_edge_calib.wflw import WFLW_ATTRIBUTES
from pfld_edge_runtime import LandmarkScheme
from pfld_edge_runtime.analyzer import landmark_boxes

__all__ = ["assemble", "measured_record", "shared_landmarks", "subset_order", "verify_models"]


def verify_models(
    models: Sequence[ProofModel],
    faces: Sequence[Face],
    settings: Settings,
    *,
    compare: bool = True,
    cut_by: Sequence[Face] | None = None,
    refine: int = 0,
    advance: Callable[[int], object] | None = None,
) -> Verification:
    """Run networks over faces with known landmarks, and compare the others with the first.

    Args:
        models: At least one, all of one landmark scheme.
        faces: At least one.
        settings: What is asked for.
        compare: Whether the first network is a reference; otherwise each is measured for itself.
        cut_by: The same faces with the boxes that networks are to be given, e.g. a detector's; NaN where it missed.
        refine: How many times each network looks again, in the tight box of the landmarks that it found.
        advance: Called with the number of faces done.

    Raises:
        FaceSetError: A face lacks landmarks or has others than the networks, or a photograph can't be read.
    """
    shared_landmarks(models)
    true_landmarks(faces, models[0].contract)  # before the long part: whether the set fits
    given = faces if cut_by is None else cut_by
    found = find_landmarks(models, given, advance)
    for _ in range(refine):
        found = [_again(model, landmarks, faces) for model, landmarks in zip(models, found, strict=True)]
    return assemble(models, found, faces, settings, compare=compare, cut_by=cut_by)


def _again(model: ProofModel, landmarks: NDArray[np.float32], faces: Sequence[Face]) -> NDArray[np.float32]:
    """Look again, in the boxes of the landmarks; missed faces stay missed."""
    boxes = landmark_boxes(landmarks)
    return find_landmarks([model], [replace(face, bbox_xyxy=box) for face, box in zip(faces, boxes, strict=True)])[0]


def assemble(
    models: Sequence[ProofModel],
    found: Sequence[NDArray[np.float32]],
    faces: Sequence[Face],
    settings: Settings,
    *,
    compare: bool = True,
    cut_by: Sequence[Face] | None = None,
) -> Verification:
    """Measure landmarks that were found already.

    Args:
        models: At least one.
        found: Of each network ``(N, P, 2)`` float32 pixels; NaN where a face was missed.
        faces: The N faces.
        settings: What is asked for.
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
    record: Verification, models: Sequence[ProofModel], found: Sequence[NDArray[np.float32]], *, compare: bool = True
) -> Verification:
    """Fill a record that knows its faces but no networks yet.

    Args:
        record: Without models.
        models: At least one.
        found: Of each network ``(N, P, 2)`` float32 pixels; NaN where a face was missed.
        compare: As for `verify_models`.
    """
    proofs: list[ModelProof] = []
    for model, landmarks in zip(models, found, strict=True):
        proof = _measured(model, landmarks, record)
        if compare:
            proof = _compared(proof, proofs[0], record) if proofs else replace(proof, verdict=Verdict.REFERENCE)
        else:
            proof = _alone(proof, record)
        proofs.append(proof)
    return replace(record, models=tuple(proofs))


def _measured(model: ProofModel, landmarks: NDArray[np.float32], record: Verification) -> ModelProof:
    errors = face_errors(landmarks, record.truth, record.scheme)
    return ModelProof(
        name=model.name,
        path=model.path,
        kind=model.kind,
        sha256=model.sha256,
        contract=model.contract,
        assumed=model.assumed,
        landmarks=landmarks,
        errors=errors,
        accuracy=figures_by_subset(errors, record.subset_names, record.subsets),
    )


def _alone(proof: ModelProof, record: Verification) -> ModelProof:
    """Add what is only of interest where there is nothing to compare with."""
    intervals = {}
    for name, some in _members(record).items():
        settings = record.settings
        found = mean_interval(
            proof.errors.ocular[some], record.photographs[some], resamples=settings.resamples, seed=settings.seed
        )
        if found is not None:
            intervals[name] = found
    error = measure_deviation(proof.landmarks, record.truth, record.truth, record.scheme)
    return replace(proof, error=error, nme_intervals=intervals)


def _members(record: Verification) -> dict[str, NDArray[np.bool_]]:
    """``(N,)`` which faces, of all and of each subset that has any."""
    subsets = {name: record.subsets[:, i] for i, name in enumerate(record.subset_names) if record.subsets[:, i].any()}
    return {"all": np.ones(len(record.faces), bool), **subsets}


def _compared(proof: ModelProof, reference: ModelProof, record: Verification) -> ModelProof:
    settings = record.settings
    estimates = {
        name: paired_drift(
            proof.errors.ocular[some],
            reference.errors.ocular[some],
            record.photographs[some],
            resamples=settings.resamples,
            seed=settings.seed,
        )
        for name, some in _members(record).items()
    }
    overall = estimates.pop("all")
    verdict, reason = judge(overall, settings.max_drift)
    lost = proof.accuracy["all"].misses - reference.accuracy["all"].misses
    if lost > 0 and settings.max_drift is not None:
        verdict, reason = Verdict.FAIL, f"it gives no numbers for {lost} of {len(record.faces)} faces"
    return replace(
        proof,
        drift=PairedDrift(overall, estimates),
        deviation=measure_deviation(proof.landmarks, reference.landmarks, record.truth, record.scheme),
        verdict=verdict,
        reason=reason,
    )


def shared_landmarks(models: Sequence[ProofModel]) -> LandmarkScheme:
    """Give the landmarks that all networks find.

    Raises:
        FaceSetError: Two find other ones.
    """
    scheme = models[0].contract.landmarks
    for model in models[1:]:
        if model.contract.landmarks != scheme:
            raise FaceSetError(
                f"{model.name} finds {model.contract.landmarks.name!r} landmarks, {models[0].name} {scheme.name!r}: "
                "networks of one scheme can be measured together"
            )
    return scheme


def subset_order(known: Set[str]) -> tuple[str, ...]:
    """WFLW's six in their order, then others by name."""
    ours = [name for name in WFLW_ATTRIBUTES if name in known]
    return (*ours, *sorted(known - set(ours)))
