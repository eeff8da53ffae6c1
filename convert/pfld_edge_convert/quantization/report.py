"""Facts about a quantized file: the layer costs in its metadata, the operators that run in 8 bits, its latency."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from pfld_edge_convert.benchmark.timing import Times, take_turns
from pfld_edge_convert.inference import open_model, optimized_graph
from pfld_edge_convert.quantization.mixed_precision import LayerCost
from pfld_edge_runtime import ModelContractError

REPORT_KEY = "pfld_edge.quantization"
"""Key of the report's JSON in an ONNX file's ``metadata_props``."""

_FIELDS = ("layer", "sqnr", "low", "high", "deviation", "large_pose")

_INTEGER = frozenset({"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger"})
_FLOAT = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})

_WARM_UP = 10


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """How a network was quantized, as its file's metadata say.

    Attributes:
        method: Range method.
        tried: Mean landmark deviation on held-back faces with each range method; see `select_method`.
        costs: Of each layer alone, the most expensive first.
        float_layers: Layers that stayed in float.
        faces: Number of faces that the costs were measured on.
    """

    method: str
    tried: dict[str, float]
    costs: tuple[LayerCost, ...]
    float_layers: tuple[str, ...] = ()
    faces: int = 0

    def to_json(self) -> str:
        """Compact JSON with three significant digits."""
        record = {
            "method": self.method,
            "tried": {name: _short(value) for name, value in self.tried.items()},
            "float": list(self.float_layers),
            "faces": self.faces,
            "layers": [[_short(getattr(cost, name)) for name in _FIELDS] for cost in self.costs],
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
    """Write a report into a model's metadata; it replaces an existing one."""
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


@dataclass(frozen=True, slots=True)
class Coverage:
    """Convolutions and matrix products that onnxruntime runs in 8 bits.

    Attributes:
        integer: Names of those in 8 bits.
        floating: Names of those in float.
        conversions: Number of QuantizeLinear and DequantizeLinear nodes.
    """

    integer: tuple[str, ...]
    floating: tuple[str, ...]
    conversions: int

    @property
    def share(self) -> float:
        """Fraction of the convolutions and matrix products that run in 8 bits."""
        total = len(self.integer) + len(self.floating)
        return len(self.integer) / total if total else 0.0

    def describe(self) -> str:
        """One line."""
        total = len(self.integer) + len(self.floating)
        floating = f", in float: {', '.join(self.floating)}" if self.floating else ""
        return f"{len(self.integer)} of {total} convolutions and products run in 8 bits{floating}"


def fusion_coverage(model: onnx.ModelProto | Path) -> Coverage:
    """Read from onnxruntime's optimized graph which operators run in 8 bits.

    Raises:
        ConvertError: onnxruntime refuses the model.
    """
    named = [(node.op_type, node.output[0]) for node in optimized_graph(model).graph.node]
    return Coverage(
        tuple(name for kind, name in named if kind in _INTEGER),
        tuple(name for kind, name in named if kind in _FLOAT),
        sum(kind in _CONVERSIONS for kind, _ in named),
    )


def face_times(models: dict[str, onnx.ModelProto], rounds: int = 100) -> dict[str, Times]:
    """Time one face through each network, one thread, on this machine.

    The networks run in turns, so that other load slows all of them alike: ratios are steadier than times.

    Args:
        models: Networks by name, each with one input of known shape but for the batch.
        rounds: Timed calls of each.
    """
    calls = {name: _one_face(model) for name, model in models.items()}
    return take_turns(calls, rounds, warm_up=_WARM_UP)


def _one_face(model: onnx.ModelProto) -> Callable[[], object]:
    session = open_model(model)
    value = session.get_inputs()[0]
    noise = np.random.default_rng(0).integers(0, 256, [1, *value.shape[1:]])
    inputs = noise.astype(np.uint8) if value.type == "tensor(uint8)" else (noise / 127.5 - 1).astype(np.float32)
    return lambda: session.run(None, {value.name: inputs})
