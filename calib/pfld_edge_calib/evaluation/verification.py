"""The record of a verification, from which tables, JSON and the HTML report are made."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.evaluation.deviation import Deviation
from pfld_edge_calib.evaluation.drift import RESAMPLES, DriftEstimate, Verdict
from pfld_edge_calib.evaluation.metrics import Accuracy, FaceErrors
from pfld_edge_runtime import Contract, LandmarkScheme

__all__ = [
    "RECORD_FORMAT",
    "LikelyCause",
    "ModelResult",
    "PairedDrift",
    "Verification",
    "VerificationSettings",
    "verification_record",
]

RECORD_FORMAT = 1
"""Raised when a field is renamed or changes its meaning; new fields don't raise it."""


@dataclass(frozen=True, slots=True)
class VerificationSettings:
    """Settings of a verification.

    Attributes:
        data: The dataset, as it was named; empty for the bundled portraits.
        split: Of a WFLW folder.
        max_drift: Budget, a share of the reference's NME; None where none was given.
        accept_undecided: Whether the command succeeds with an inconclusive verdict.
        detector: The detector whose boxes were used; empty for the dataset's own boxes.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """

    data: str = ""
    split: str = ""
    max_drift: float | None = None
    accept_undecided: bool = False
    detector: str = ""
    resamples: int = RESAMPLES
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PairedDrift:
    """Drift over all faces and by subset.

    Attributes:
        all: Over all faces.
        by_subset: Of each subset that has faces; without ``all``.
    """

    all: DriftEstimate
    by_subset: Mapping[str, DriftEstimate]


@dataclass(frozen=True, slots=True)
class LikelyCause:
    """A likely cause of a deviation.

    Attributes:
        cause: ``weights``, ``color``, ``margin``, ``order`` or ``scale``.
        sentence: Names the cause and the part of the file, e.g. the tensor.
        evidence: The measured values behind it.
    """

    cause: str
    sentence: str
    evidence: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelResult:
    """Results of one model, and its comparison with the reference.

    Attributes:
        name: Name for tables.
        path: The file, as it was given.
        kind: One of `pfld_edge_calib.landmark_model.KINDS`.
        sha256: Hash of the file, hexadecimal.
        contract: How it was fed.
        assumed: Whether the contract was assumed.
        landmarks: ``(N, P, 2)`` float32, pixels of each face's photograph; NaN where a detector missed the face.
        errors: Error of each face.
        accuracy: Of all faces (``all``) and of each subset that has faces.
        drift: Against the reference; None for the reference itself, or where there is none.
        deviation: Against the reference's landmarks; None as `drift`.
        verdict: Relation of the drift to the budget.
        reason: Explains the verdict; empty where there is no budget.
        suspicions: Likely causes of a deviation, the likeliest first.
        error: Distances from the truth by landmark and part of the face, where there is no reference to compare with.
        nme_intervals: 95 % interval of the NME, of all faces (``all``) and of each subset in 8 photographs or more,
            where there is no reference.
    """

    name: str
    path: str
    kind: str
    sha256: str
    contract: Contract
    assumed: bool
    landmarks: NDArray[np.float32]
    errors: FaceErrors
    accuracy: Mapping[str, Accuracy]
    drift: PairedDrift | None = None
    deviation: Deviation | None = None
    verdict: Verdict = Verdict.UNJUDGED
    reason: str = ""
    suspicions: tuple[LikelyCause, ...] = ()
    error: Deviation | None = None
    nme_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verification:
    """Models, the faces that they were run on, and their results.

    Attributes:
        faces: N paths of photographs, one a face, as text.
        photographs: ``(N,)`` integers: faces of one photograph share one.
        subset_names: S subsets: WFLW's six, or the attributes of the dataset.
        subsets: ``(N, S)`` mask of the faces in each subset.
        truth: ``(N, P, 2)`` float32 pixels; unlabelled points lie at the mean of the labelled ones.
        boxes: ``(N, 4)`` float64, x0 y0 x1 y1 in pixels, by which the faces were cropped; NaN where a detector missed.
        scheme: Names the P points.
        models: At least one; the first is the reference, if there is one.
        settings: Settings of the verification.
        left_out: Photographs of the faces whose normalizing points are unlabelled or coincide, one a face: they have no
            NME and count in no figure.
    """

    faces: tuple[str, ...]
    photographs: NDArray[np.int64]
    subset_names: tuple[str, ...]
    subsets: NDArray[np.bool_]
    truth: NDArray[np.float32]
    boxes: NDArray[np.float64]
    scheme: LandmarkScheme
    models: tuple[ModelResult, ...]
    settings: VerificationSettings
    left_out: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of all models: fail, then undecided, then pass; unjudged where no model was judged."""
        found = {model.verdict for model in self.models}
        order = (Verdict.FAIL, Verdict.UNDECIDED, Verdict.PASS)
        return next((verdict for verdict in order if verdict in found), Verdict.UNJUDGED)

    @property
    def fell_short(self) -> bool:
        """Whether the command exits with status 1."""
        if self.verdict is Verdict.UNDECIDED:
            return not self.settings.accept_undecided
        return self.verdict is Verdict.FAIL


def verification_record(found: Verification) -> dict[str, Any]:
    """Convert a verification to JSON types, without the landmarks; NaN and infinity become None."""
    record = {
        "format": RECORD_FORMAT,
        "verdict": found.verdict,
        "fell_short": found.fell_short,
        "settings": found.settings,
        "scheme": found.scheme.name,
        "faces": len(found.faces),
        "left_out": found.left_out,
        "photographs": len(np.unique(found.photographs)),
        "subsets": {name: int(found.subsets[:, i].sum()) for i, name in enumerate(found.subset_names)},
        "models": [_model(model, found) for model in found.models],
        "each_face": [_face(found, row) for row in range(len(found.faces))],
    }
    plain: dict[str, Any] = _plain(record)
    return plain


def _model(model: ModelResult, found: Verification) -> dict[str, Any]:
    return {
        "name": model.name,
        "path": model.path,
        "kind": model.kind,
        "sha256": model.sha256,
        "contract_assumed": model.assumed,
        "verdict": model.verdict,
        "reason": model.reason,
        "likely_causes": model.suspicions,
        "accuracy": model.accuracy,
        "nme_intervals": model.nme_intervals,
        "error": None if model.error is None else _deviation(model.error, found),
        "drift": None if model.drift is None else {"all": model.drift.all, **model.drift.by_subset},
        "deviation": None if model.deviation is None else _deviation(model.deviation, found),
    }


def _deviation(deviation: Deviation, found: Verification) -> dict[str, Any]:
    return {
        "mean": deviation.mean,
        "largest": deviation.largest,
        "largest_face": deviation.largest_face,
        "largest_image": found.faces[deviation.largest_face],
        "largest_landmark": deviation.largest_landmark,
        "regions": deviation.by_region,
        "by_landmark": deviation.by_landmark,
        "largest_by_landmark": deviation.largest_by_landmark,
    }


def _face(found: Verification, row: int) -> dict[str, Any]:
    return {
        "image": found.faces[row],
        "box": found.boxes[row],
        "subsets": [name for name, there in zip(found.subset_names, found.subsets[row], strict=True) if there],
        "nme": [model.errors.ocular[row] for model in found.models],
        "deviation": [None if model.deviation is None else model.deviation.by_face[row] for model in found.models],
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON is of any type
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
