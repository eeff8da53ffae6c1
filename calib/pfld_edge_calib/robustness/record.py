"""Robustness as plain JSON types."""

import math
from typing import Any

from pfld_edge_calib.robustness.curves import Robustness

__all__ = ["robustness_record"]


def robustness_record(found: Robustness) -> dict[str, Any]:
    """Turn curves into dicts, lists, numbers and None; what is no finite number becomes None."""
    return {
        "faces": found.faces,
        "models": list(found.models),
        "clean": [_number(value) for value in found.clean.tolist()],
        "damages": [
            {
                "name": curve.name,
                "unit": curve.unit,
                "strengths": list(curve.strengths),
                "nme": {
                    model: [_number(value) for value in row]
                    for model, row in zip(found.models, curve.nmes.tolist(), strict=True)
                },
            }
            for curve in found.curves
        ],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
