"""A verification as plain JSON types, for machines."""

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from typing import Any

import numpy as np

from pfld_edge_calib.proof.deviation import Deviation
from pfld_edge_calib.proof.result import ModelProof, Verification

__all__ = ["RECORD_FORMAT", "verification_record"]

RECORD_FORMAT = 1
"""Raised where a field is renamed or means something else; new fields don't raise it."""


def verification_record(found: Verification) -> dict[str, Any]:
    """Turn a verification into dicts, lists, strings, numbers and None; what is no finite number becomes None.

    Landmarks are left out; each face's errors are in it.
    """
    record = {
        "format": RECORD_FORMAT,
        "verdict": found.verdict,
        "fell_short": found.fell_short,
        "settings": found.settings,
        "scheme": found.scheme.name,
        "faces": len(found.faces),
        "photographs": len(np.unique(found.photographs)),
        "subsets": {name: int(found.subsets[:, i].sum()) for i, name in enumerate(found.subset_names)},
        "models": [_model(model, found) for model in found.models],
        "each_face": [_face(found, row) for row in range(len(found.faces))],
    }
    plain: dict[str, Any] = _plain(record)
    return plain


def _model(model: ModelProof, found: Verification) -> dict[str, Any]:
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
