"""Looks for causes where a network's landmarks are off, from the cheapest look to the dearest."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import Face
from pfld_edge_calib.proof import ModelProof, ProofModel, Verdict, Verification
from pfld_edge_convert.diagnosis.changed_weights import changed_weights, weights_differ
from pfld_edge_convert.diagnosis.fed_otherwise import fed_otherwise
from pfld_edge_convert.diagnosis.finding import Finding
from pfld_edge_convert.diagnosis.landmark_order import other_order
from pfld_edge_convert.diagnosis.own_fingerprint import FingerprintCheck, check_fingerprint
from pfld_edge_convert.diagnosis.wrong_scale import wrong_scale

__all__ = ["diagnosed"]

_FLOAT_DEVIATION = 1e-4
"""Of the eye distance, at one landmark. Float files differ from their checkpoint by some 1e-6."""

_INT8_DEVIATION = 0.02
"""Of the eye distance, on average. What INT8 costs is below 0.01."""

_FACES = 24
"""Enough to tell causes apart, few enough to try many."""

_SCALE_FACES = 8
"""Each of some hundred scales is tried with some tens of factors."""


def diagnosed(
    record: Verification,
    models: Sequence[ProofModel],
    faces: Sequence[Face],
    starting: Callable[[str], object] | None = None,
) -> Verification:
    """Add likely causes to every network that is off, and fail those where one was proven, if there is a budget.

    A file that is nearly right by luck is still not the file that was meant. A network that agrees with the reference
    costs one run on the seeded image and, of float files, one look at the weights.

    Args:
        record: A verification with a reference, its first network.
        models: The networks of the record, in its order.
        faces: The faces of the record.
        starting: Called with the name of each network that is off and is looked into.
    """
    proofs = [record.models[0]]
    for proof, model in zip(record.models[1:], models[1:], strict=True):
        check = check_fingerprint(model)
        if _is_off(proof, check) or _says_otherwise(models[0], model) or _holds_other_weights(models[0], model):
            if starting is not None and proof.verdict is not Verdict.UNDECIDED:
                starting(proof.name)
            finding = next(_findings(record, proof, models[0], model, faces, check), None)
            proof = proof if finding is None else _with(proof, finding, record)
        proofs.append(proof)
    return replace(record, models=tuple(proofs))


def _is_off(proof: ModelProof, check: FingerprintCheck | None) -> bool:
    if proof.deviation is None:
        return False
    if not np.isfinite(proof.deviation.mean):
        return True
    if not proof.kind.endswith("int8"):
        return proof.deviation.largest > _FLOAT_DEVIATION
    changed = check is not None and check.changed
    return changed or proof.deviation.mean > _INT8_DEVIATION or proof.verdict in (Verdict.FAIL, Verdict.UNDECIDED)


def _says_otherwise(reference: ProofModel, model: ProofModel) -> bool:
    """Whether the contracts feed the two networks differently; an end-to-end graph takes RGB whatever is inside."""
    mine, theirs = model.contract, reference.contract
    colors = model.locate is None and mine.color_order != theirs.color_order
    return colors or mine.crop != theirs.crop


def _holds_other_weights(reference: ProofModel, model: ProofModel) -> bool:
    return model.kind.endswith("fp32") and weights_differ(Path(reference.path), Path(model.path))


def _findings(
    record: Verification,
    proof: ModelProof,
    reference: ProofModel,
    model: ProofModel,
    faces: Sequence[Face],
    check: FingerprintCheck | None,
) -> Iterator[Finding]:
    """The proven ones first."""
    rows = _some_faces(record, proof)
    expected = record.models[0].landmarks[rows]
    some = [faces[row] for row in rows]
    contract = reference.contract
    if len(rows):
        yield from other_order(proof.landmarks[rows], expected, record.truth[rows], record.scheme)
        yield from fed_otherwise(model, contract, some, proof.landmarks[rows], expected, record.truth[rows])
    unproven: list[Finding] = []
    far = proof.verdict is Verdict.FAIL or (proof.deviation is not None and proof.deviation.mean > _INT8_DEVIATION)
    for finding in _in_the_file(reference, model, some, expected, check, far=far):
        if finding.proven:
            yield finding
        unproven.append(finding)
    yield from unproven


def _in_the_file(
    reference: ProofModel,
    model: ProofModel,
    faces: Sequence[Face],
    expected: NDArray[np.float32],
    check: FingerprintCheck | None,
    *,
    far: bool,
) -> Iterator[Finding]:
    """Causes inside the file; `far` is whether its landmarks are further off than quantizing explains."""
    if model.kind.endswith("int8") and (far or (check is not None and check.changed)):
        yield from wrong_scale(model, check, faces[:_SCALE_FACES], expected[:_SCALE_FACES])
    elif model.kind.endswith("fp32"):
        for finding in changed_weights(Path(reference.path), Path(model.path)):
            yield replace(finding, proven=finding.proven or (check is not None and check.beyond_tolerance))
            return
    if check is not None:
        yield from check.findings()


def _some_faces(record: Verification, proof: ModelProof) -> NDArray[np.int64]:
    """Rows of faces that both networks found, evenly spread over the set."""
    known = np.isfinite(proof.landmarks).all(axis=(1, 2)) & np.isfinite(record.models[0].landmarks).all(axis=(1, 2))
    rows = np.flatnonzero(known)
    chosen: NDArray[np.int64] = rows[np.unique(np.linspace(0, len(rows) - 1, min(_FACES, len(rows))).astype(int))]
    return chosen


def _with(proof: ModelProof, finding: Finding, record: Verification) -> ModelProof:
    changed = replace(proof, suspicions=(finding.suspicion,))
    if not finding.proven or record.settings.max_drift is None or proof.verdict is Verdict.FAIL:
        return changed
    reason = f"{proof.reason}, but the file is not right: see the likely cause" if proof.reason else ""
    return replace(changed, verdict=Verdict.FAIL, reason=reason)
