"""What a verification found: the one record that tables, JSON, JUnit and the HTML report are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.proof.deviation import Deviation
from pfld_edge_calib.proof.figures import FaceErrors, Figures
from pfld_edge_calib.proof.interval import RESAMPLES, DriftEstimate
from pfld_edge_runtime import Contract, LandmarkScheme

__all__ = ["ModelProof", "PairedDrift", "Settings", "Suspicion", "Verdict", "Verification"]


class Verdict(str, Enum):
    """What can be said of a network's drift and the budget."""

    REFERENCE = "reference"
    """The network that the others are compared with."""
    UNJUDGED = "unjudged"
    """No budget was given, or there is nothing to compare with."""
    PASS = "pass"  # noqa: S105 - a verdict, no password
    """The whole interval of the drift lies within the budget."""
    FAIL = "fail"
    """The whole interval lies beyond it."""
    UNDECIDED = "undecided"
    """The budget lies inside the interval: these faces can't tell."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for.

    Attributes:
        data: The face set, as it was named; empty for the bundled portraits.
        split: Of a WFLW folder.
        max_drift: Budget, a share of the reference's NME; None where none was given.
        accept_undecided: Whether an undecided verdict lets the command succeed.
        detector: The detector in front of the network; empty where the boxes are the set's own.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
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
class Suspicion:
    """What most likely went wrong with a file.

    Attributes:
        cause: ``weights``, ``color``, ``margin``, ``order`` or ``scale``.
        sentence: For people: names the likely cause and the thing, e.g. the tensor.
        evidence: The figures behind it.
    """

    cause: str
    sentence: str
    evidence: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelProof:
    """What one network found, and how it compares.

    Attributes:
        name: For tables.
        path: The file, as it was given.
        kind: One of `pfld_edge_calib.proof.model.KINDS`.
        sha256: Of the file, hexadecimal.
        contract: How it was fed.
        assumed: Whether the contract was assumed.
        landmarks: ``(N, P, 2)`` float32, pixels of each face's photograph; NaN where a detector missed the face.
        errors: Of each face.
        accuracy: Figures of all faces (``all``) and of each subset that has faces.
        drift: Against the reference; None of the reference, or where there is none.
        deviation: Against the reference's landmarks; None as `drift`.
        verdict: What can be said of the drift and the budget.
        reason: A sentence behind the verdict; empty where there is nothing to say.
        suspicions: Likely causes, where something is off; the likeliest first.
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
    accuracy: Mapping[str, Figures]
    drift: PairedDrift | None = None
    deviation: Deviation | None = None
    verdict: Verdict = Verdict.UNJUDGED
    reason: str = ""
    suspicions: tuple[Suspicion, ...] = ()
    error: Deviation | None = None
    nme_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verification:
    """Networks, the faces that they were run on, and what came out.

    Attributes:
        faces: N paths of photographs, one a face, as text.
        photographs: ``(N,)`` integers: faces of one photograph share one.
        subset_names: S subsets: WFLW's six, or what the set's faces have.
        subsets: ``(N, S)`` which face is in which.
        truth: ``(N, P, 2)`` float32 pixels.
        boxes: ``(N, 4)`` float64, x0 y0 x1 y1 in pixels, what the faces were cut by; NaN where a detector missed.
        scheme: Names the P points.
        models: At least one; of `verify` the first is the reference.
        settings: What was asked for.
    """

    faces: tuple[str, ...]
    photographs: NDArray[np.int64]
    subset_names: tuple[str, ...]
    subsets: NDArray[np.bool_]
    truth: NDArray[np.float32]
    boxes: NDArray[np.float64]
    scheme: LandmarkScheme
    models: tuple[ModelProof, ...]
    settings: Settings

    @property
    def verdict(self) -> Verdict:
        """The worst of all: fail before undecided before pass; unjudged where nothing was judged."""
        found = {model.verdict for model in self.models}
        order = (Verdict.FAIL, Verdict.UNDECIDED, Verdict.PASS)
        return next((verdict for verdict in order if verdict in found), Verdict.UNJUDGED)

    @property
    def fell_short(self) -> bool:
        """Whether the command is to exit with 1."""
        if self.verdict is Verdict.UNDECIDED:
            return not self.settings.accept_undecided
        return self.verdict is Verdict.FAIL
