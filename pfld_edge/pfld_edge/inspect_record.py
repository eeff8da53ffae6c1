"""What `inspect` found, as plain data for JSON."""

from dataclasses import asdict
from typing import Any

from pfld_edge_convert.comparison import Comparison
from pfld_edge_convert.inspection import Inspection

__all__ = ["comparison_record", "inspection_record"]

_FORMAT = "pfld-edge-inspect-1"


def inspection_record(found: Inspection, *, layers: bool) -> dict[str, Any]:
    """Describe one file.

    Args:
        found: The file.
        layers: With every layer, or with their sums only.
    """
    record: dict[str, Any] = {
        "format": _FORMAT,
        "path": str(found.path),
        "size": found.size,
        "contract": None if found.contract is None else found.contract.to_dict(),
        "facts": list(found.facts),
        "nodes": found.stats.nodes,
        "macs": found.stats.macs,
        "parameters": found.stats.parameters,
        "fusion": None,
        "quantization": None if found.quantization is None else asdict(found.quantization),
    }
    if found.fusion is not None:
        patterns = [asdict(pattern) for pattern in found.fusion.patterns]
        record["fusion"] = {"patterns": patterns, "running": found.fusion.running}
    if layers:
        record["layers"] = [
            {
                **asdict(layer),
                "field": None if field is None else asdict(field),
                "runs_as": None if found.fusion is None else found.fusion.runs_as[place],
            }
            for place, (layer, field) in enumerate(zip(found.stats.layers, found.fields, strict=True))
        ]
    return record


def comparison_record(
    first: Inspection, second: Inspection, found: Comparison, answers: float | None, *, layers: bool
) -> dict[str, Any]:
    """Describe two files and what differs.

    Args:
        first: A file.
        second: Another.
        found: What differs.
        answers: Largest difference of a landmark, fractions of the crop; None where that can't be told.
        layers: As for `inspection_record`.
    """
    return {
        "format": _FORMAT,
        "files": [inspection_record(item, layers=layers) for item in (first, second)],
        "differences": {
            **asdict(found),
            "weights": [{**asdict(pair), "identical": pair.identical} for pair in found.weights],
            "largest_landmark_difference": answers,
        },
    }
