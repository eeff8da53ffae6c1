"""Runs models over annotated faces and compares them with a reference; tables, JSON and the report read the record."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from pfld_edge_calib.datasets.wflw import WFLW_ATTRIBUTES
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.evaluation import metrics
from pfld_edge_calib.evaluation.drift import (
    FEWEST_FACES,
    RESAMPLES,
    DriftEstimate,
    Verdict,
    judge,
    mean_interval,
    paired_drift,
)
from pfld_edge_calib.evaluation.predictions import FacePredictions, no_face_left
from pfld_edge_calib.face import Face
from pfld_edge_calib.find_landmarks import find_landmarks, shared_scheme, true_landmarks
from pfld_edge_calib.photo import UnusableFaces
from pfld_edge_runtime import Contract, LandmarkModel, LandmarkScheme
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array, Int64Array

_FARTHEST = 0.25
"""Eye distances from the reference's landmark; a landmark that far off is on another part of the face."""

_CALIBRATION_FACES = 100
"""From about as many on, INT8 ranges hardly depend on which faces were taken."""

_RECORD_FORMAT = 2
"""Raised when a field is renamed or changes its meaning; new fields don't raise it."""


@dataclass(frozen=True, slots=True)
class VerificationSettings:
    """Settings of a verification.

    `data` is the dataset, as it was named, empty for the bundled portraits; `detector` that whose boxes were used,
    empty for the dataset's own. The budget `max_drift` is a share of the reference's NME. `resamples` is the number of
    bootstrap samples.
    """

    data: str = ""
    split: str = ""
    max_drift: float | None = None
    accept_inconclusive: bool = False
    detector: str = ""
    resamples: int = RESAMPLES
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LikelyCause:
    """A likely cause of a deviation; `proven` where undoing it brings the landmarks back, or the fingerprint shows it.

    `cause` is ``weights``, ``color``, ``order`` or ``scale``, `evidence` the measured values behind it.
    """

    cause: str
    sentence: str
    evidence: Mapping[str, float | str] = field(default_factory=dict)
    proven: bool = True


@dataclass(frozen=True, slots=True)
class ModelResult:
    """Results of one model, and its comparison with the reference.

    `landmarks` are ``(N, P, 2)`` float32 pixels of each face's photograph, NaN where a detector missed the face.
    `accuracy`, `drift` and `nme_intervals` (95 %, in 8 photographs or more) are of all faces (``all``) and of each
    subset that has any. `drift` and `deviation` are against the reference; `error`, the distances from the truth, and
    `nme_intervals` are given where there is none. `likely_causes` begin with the likeliest.
    """

    name: str
    path: str
    kind: str
    sha256: str
    contract: Contract
    assumed: bool
    landmarks: Float32Array
    errors: metrics.FaceErrors
    accuracy: Mapping[str, metrics.Accuracy]
    drift: Mapping[str, DriftEstimate] | None = None
    deviation: metrics.Deviation | None = None
    verdict: Verdict = Verdict.UNJUDGED
    reason: str = ""
    likely_causes: tuple[LikelyCause, ...] = ()
    error: metrics.Deviation | None = None
    nme_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verification:
    """Models, the faces that they were run on, and their results.

    `faces` are N paths of photographs, one a face; faces of one photograph share one of the ``(N,)`` integers
    `photographs`. `subsets` is the ``(N, S)`` mask of the faces with each of S attributes, `truth` ``(N, P, 2)`` pixels
    with unlabelled points at the mean of the others, `boxes` ``(N, 4)`` x0 y0 x1 y1, NaN where a detector missed. The
    first model is the reference, if there is one. `left_out` are the photographs of faces without NME, whose
    normalizing points are unlabelled or coincide; for `outside` and `unreadable`, not among the N, see
    `FacePredictions`.
    """

    faces: tuple[str, ...]
    photographs: Int64Array
    subset_names: tuple[str, ...]
    subsets: BoolArray
    truth: Float32Array
    boxes: Float64Array
    scheme: LandmarkScheme
    models: tuple[ModelResult, ...]
    settings: VerificationSettings
    left_out: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def measured(self) -> int:
        """Number of faces that the figures are of."""
        return len(self.faces) - len(self.left_out)

    def recorded_faces(self, rows: Iterable[int]) -> list[Face]:
        """Faces of some rows with their boxes and true points, for further looks at their photographs."""
        return [Face(Path(self.faces[row]), self.boxes[row], self.truth[row]) for row in rows]

    @property
    def given(self) -> int:
        """Number of faces of the set, those that are left out among them."""
        return len(self.faces) + len(self.outside) + len(self.unreadable)

    @property
    def verdict(self) -> Verdict:
        """The worst of all models: fail, then inconclusive, then pass; unjudged where no model was judged."""
        found = {model.verdict for model in self.models}
        order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
        return next((verdict for verdict in order if verdict in found), Verdict.UNJUDGED)

    @property
    def fell_short(self) -> bool:
        """Whether the command exits with status 1."""
        if self.verdict is Verdict.INCONCLUSIVE:
            return not self.settings.accept_inconclusive
        return self.verdict is Verdict.FAIL


def verify_models(
    models: Sequence[LandmarkModel],
    faces: Sequence[Face],
    settings: VerificationSettings,
    *,
    compare: bool = True,
    refine: int = 0,
    advance: Callable[[int], object] = lambda _count: None,
    unusable: UnusableFaces | None = None,
) -> Verification:
    """Run models over annotated faces, and compare the others with the first.

    Models are given the boxes of the faces, NaN where a detector missed one. With `compare` the first model is the
    reference; otherwise each is evaluated by itself. `refine` and `advance` are those of `find_landmarks`, `unusable`
    gets the faces that can't be measured; where it is None a photograph that can't be read is an error.

    Raises:
        ModelContractError: The models have different landmark schemes.
        FaceSetError: A face has no landmarks, or another number than the models, or a photograph can't be read.
    """
    shared_scheme(models)
    truth = true_landmarks(faces, models[0].contract)
    unusable = UnusableFaces() if unusable is None else unusable
    found = find_landmarks(models, faces, advance, unusable, refine)
    return evaluate_found(models, FacePredictions.of(faces, truth, found, unusable), settings, compare=compare)


def evaluate_found(
    models: Sequence[LandmarkModel],
    predictions: FacePredictions,
    settings: VerificationSettings,
    *,
    compare: bool = True,
) -> Verification:
    """Evaluate landmarks that models predicted already; FaceSetError where no face can be measured or has an NME."""
    if not predictions.images:
        raise no_face_left(predictions.outside, predictions.unreadable)
    kinds: dict[frozenset[str], int] = {}  # few combinations of attributes occur
    kind_of_face = [kinds.setdefault(attributes, len(kinds)) for attributes in predictions.attributes]
    known = set().union(*kinds)
    names = (*(name for name in WFLW_ATTRIBUTES if name in known), *sorted(known - set(WFLW_ATTRIBUTES)))
    members = np.array([[name in kind for name in names] for kind in kinds], bool).reshape(len(kinds), -1)
    images, truth = predictions.images, predictions.truth
    numbers: dict[str, int] = {}
    record = Verification(
        faces=images,
        photographs=np.array([numbers.setdefault(image, len(numbers)) for image in images], np.int64),
        subset_names=names,
        subsets=members[kind_of_face],
        truth=truth,
        boxes=predictions.boxes,
        scheme=models[0].contract.landmarks,
        models=(),
        settings=settings,
        outside=predictions.outside,
        unreadable=predictions.unreadable,
    )
    first, second = record.scheme.normalizing_points
    measurable = np.isfinite(metrics.normalizing_distance(truth, [first], [second]))
    if not measurable.any():
        raise FaceSetError(f"no face has an NME: points {first} and {second} are unlabelled or coincide in all of them")
    results: list[ModelResult] = []
    for model, landmarks in zip(models, predictions.found, strict=True):
        results.append(_result(model, landmarks, record, results[0] if results else None, compare=compare))
    left_out = tuple(images[row] for row in np.flatnonzero(~measurable))
    return replace(record, models=tuple(results), truth=_filled(truth), left_out=left_out)


def _filled(truth: Float32Array) -> Float32Array:
    """Move unlabelled points from NaN to the mean of the face's labelled ones, for pictures."""
    rows = np.flatnonzero(np.isnan(truth).any(axis=(1, 2)))
    if not len(rows):
        return truth
    result = np.array(truth)
    for row in rows:
        labelled = np.isfinite(result[row]).all(axis=1)
        result[row, ~labelled] = result[row, labelled].mean(axis=0) if labelled.any() else 0
    return result


def _result(
    model: LandmarkModel,
    landmarks: Float32Array,
    record: Verification,
    first: ModelResult | None,
    *,
    compare: bool,
) -> ModelResult:
    """Compare a model with the first one, or else with the annotation."""
    settings, errors = record.settings, metrics.face_errors(landmarks, record.truth, record.scheme)
    draw = {"resamples": settings.resamples, "seed": settings.seed}
    result = ModelResult(
        model.name,
        "" if model.path is None else str(model.path),
        model.kind,
        model.sha256,
        model.contract,
        model.assumed,
        landmarks,
        errors,
        metrics.accuracy_by_subset(errors, record.subset_names, record.subsets),
    )
    if first is None and compare:
        return replace(result, verdict=Verdict.REFERENCE)
    subsets = {name: record.subsets[:, i] for i, name in enumerate(record.subset_names) if record.subsets[:, i].any()}
    parts = {
        name: (errors.ocular[some], record.photographs[some], some)
        for name, some in {"all": np.ones(len(record.faces), bool), **subsets}.items()
    }
    if first is None or not compare:
        found = {name: mean_interval(nmes, photographs, **draw) for name, (nmes, photographs, _) in parts.items()}
        intervals = {name: interval for name, interval in found.items() if interval is not None}
        error = metrics.measure_deviation(landmarks, record.truth, record.truth, record.scheme)
        return replace(result, error=error, nme_intervals=intervals)
    drift = {
        name: paired_drift(nmes, first.errors.ocular[some], photographs, **draw)
        for name, (nmes, photographs, some) in parts.items()
    }
    verdict, reason = judge(drift["all"], settings.max_drift)
    lost = result.accuracy["all"].misses - first.accuracy["all"].misses
    if lost > 0:
        verdict, reason = Verdict.FAIL, f"it gives no numbers for {lost} of {len(record.faces)} faces"
    deviation = metrics.measure_deviation(landmarks, first.landmarks, record.truth, record.scheme)
    return replace(result, drift=drift, deviation=deviation, verdict=verdict, reason=reason)


def shipping_verdict(found: Verification, model: ModelResult) -> tuple[Verdict, str]:
    """Judge whether a model may ship, by more than its drift over all faces; unjudged where no budget was given.

    The drift's interval must end within the budget, that of each subset of 20 faces or more too; no landmark may lie
    further than 0.25 eye distances from the reference's; and an INT8 file must be calibrated on 100 faces.
    """
    budget, drift, moved = found.settings.max_drift, model.drift, model.deviation
    if model.verdict is not Verdict.PASS or budget is None or drift is None or moved is None:
        return model.verdict, model.reason
    if moved.largest > _FARTHEST:
        return Verdict.FAIL, (
            f"landmark {moved.largest_landmark} of {found.faces[moved.largest_face]} lies {moved.largest:.2f} eye "
            f"distances from that of {found.models[0].name}"
        )
    large = [(name, estimate) for name, estimate in drift.items() if estimate.faces >= FEWEST_FACES]
    judged = [(*judge(estimate, budget), name) for name, estimate in large if name != "all"]
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        for own, reason, name in judged:
            if own is verdict:
                return verdict, f"{name}: {reason}"
    calibrated = _calibration_faces(model.contract.calibration)
    if calibrated is not None and calibrated < _CALIBRATION_FACES:
        return Verdict.INCONCLUSIVE, f"it is calibrated on {calibrated} faces; {_CALIBRATION_FACES} show their range"
    return Verdict.PASS, model.reason


def _calibration_faces(source: str) -> int | None:
    """Number of faces in a contract's ``calibration``; None where it says none."""
    if "bundled portraits" in source:
        return 2
    count = source.partition(" ")[0]
    return int(count) if count.isdecimal() else None


def verification_record(found: Verification) -> dict[str, Any]:
    """Convert a verification to JSON types, without the landmarks; NaN and infinity become None."""
    record = {
        "format": _RECORD_FORMAT,
        "verdict": found.verdict,
        "fell_short": found.fell_short,
        "settings": found.settings,
        "scheme": found.scheme.name,
        "faces": len(found.faces),
        "left_out": found.left_out,
        "outside": found.outside,
        "unreadable": found.unreadable,
        "photographs": len(np.unique(found.photographs)),
        "subsets": {name: int(found.subsets[:, i].sum()) for i, name in enumerate(found.subset_names)},
        "models": [_model(model, found) for model in found.models],
        "each_face": [_face(found, row) for row in range(len(found.faces))],
    }
    plain: dict[str, Any] = json_types(record)
    return plain


def _model(model: ModelResult, found: Verification) -> dict[str, Any]:
    same = "name path kind sha256 verdict reason likely_causes accuracy nme_intervals drift"
    return {name: getattr(model, name) for name in same.split()} | {
        "contract_assumed": model.assumed,
        "shipping": dict(zip(("verdict", "reason"), shipping_verdict(found, model), strict=True)),
        "error": None if model.error is None else _deviation(model.error, found),
        "deviation": None if model.deviation is None else _deviation(model.deviation, found),
    }


def _deviation(deviation: metrics.Deviation, found: Verification) -> dict[str, Any]:
    same = ("mean", "largest", "largest_face", "largest_landmark", "by_landmark", "largest_by_landmark")
    return {name: getattr(deviation, name) for name in same} | {
        "largest_image": found.faces[deviation.largest_face],
        "regions": deviation.by_region,
    }


def _face(found: Verification, row: int) -> dict[str, Any]:
    return {
        "image": found.faces[row],
        "box": found.boxes[row],
        "subsets": [name for name, there in zip(found.subset_names, found.subsets[row], strict=True) if there],
        "nme": [model.errors.ocular[row] for model in found.models],
        "deviation": [None if model.deviation is None else model.deviation.by_face[row] for model in found.models],
    }


def json_types(value: Any) -> Any:  # noqa: ANN401 - JSON is of any type
    """Convert dataclasses, mappings and arrays to JSON types; NaN and infinity become None."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return json_types(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): json_types(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return json_types(value.tolist())
    if isinstance(value, list | tuple):
        return [json_types(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
