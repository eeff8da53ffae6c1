"""What is known of an INT8 network's layers, carried by its own file."""

import json
from dataclasses import dataclass

import onnx

from pfld_edge_convert.quantization.sensitivity import LayerCost
from pfld_edge_runtime import ModelContractError

__all__ = ["REPORT_KEY", "QuantizationReport", "attach_report", "read_report"]

REPORT_KEY = "pfld_edge.quantization"
"""Key of the report's JSON in an ONNX file's ``metadata_props``."""

_FIELDS = ("layer", "sqnr", "low", "high", "deviation", "turned")


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """How a network was quantized.

    Attributes:
        method: Range method.
        tried: Mean deviation of held-back faces with each way to set ranges that was tried; see `best_method`.
        costs: What each layer costs alone, the most expensive first.
        float_layers: Layers that stayed in float.
        faces: Faces that the costs were measured on.
    """

    method: str
    tried: dict[str, float]
    costs: tuple[LayerCost, ...]
    float_layers: tuple[str, ...] = ()
    faces: int = 0

    def to_json(self) -> str:
        """As short as can be: the file is for devices."""
        rows = [[_short(getattr(cost, name)) for name in _FIELDS] for cost in self.costs]
        record = {
            "method": self.method,
            "tried": {name: _short(value) for name, value in self.tried.items()},
            "float": list(self.float_layers),
            "faces": self.faces,
            "layers": rows,
        }
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "QuantizationReport":
        """Read what `to_json` wrote.

        Raises:
            ModelContractError: It is damaged.
        """
        try:
            record = json.loads(text)
            costs = tuple(LayerCost(**dict(zip(_FIELDS, row, strict=True))) for row in record["layers"])
            return cls(record["method"], record["tried"], costs, tuple(record["float"]), int(record["faces"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelContractError(f"the file's quantization report is damaged: {error}") from error


def attach_report(model: onnx.ModelProto, report: QuantizationReport) -> None:
    """Write a report into a model's metadata, in the place of any other."""
    kept = [entry for entry in model.metadata_props if entry.key != REPORT_KEY]
    model.ClearField("metadata_props")
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=REPORT_KEY, value=report.to_json())


def read_report(model: onnx.ModelProto) -> QuantizationReport | None:
    """Read the report from a model's metadata; None where it carries none.

    Raises:
        ModelContractError: It is damaged.
    """
    for entry in model.metadata_props:
        if entry.key == REPORT_KEY:
            return QuantizationReport.from_json(entry.value)
    return None


def _short(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(f"{value:.3g}")
