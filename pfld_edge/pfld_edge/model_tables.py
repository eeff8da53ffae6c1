"""What `convert` and `inspect` say of model files: tables, and plain data for JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pfld_edge.console import new_table
from pfld_edge_convert.inspection import Comparison, Difference, Inspection
from pfld_edge_convert.model_stats import ModelStats
from pfld_edge_convert.quantization.mixed_precision import QuantizationReport
from pfld_edge_runtime import Contract

if TYPE_CHECKING:
    # `inspect` doesn't need torch, which these import.
    from pfld_edge_convert.int8_stage import Int8Outcome
    from pfld_edge_convert.pipeline import ConversionReport, ConvertedFile
    from pfld_edge_convert.quantization.mixed_precision import FaceDrift

_FORMAT = "pfld-edge-inspect-1"
_WIDE = 110
"""Columns of a terminal that shows how each layer runs, and figures in full."""
_FLOAT = 8
"""Operators in float that a summary names."""
_LONG, _EDITS = 60, 12
"""Characters of a value, and places of a graph, that a table of differences shows."""


def conversion_table(report: "ConversionReport", input_size: int, given: str) -> Table:
    """Lay out the files that were written, a line each, with differences to `given`, in pixels of the crop too."""
    difference = f"largest difference to {given}"
    table = new_table("Written", "file", figures=("size", "MACs", "parameters", "nodes", difference))
    for file in report.files:
        table.add_row(
            str(file.path),
            f"{file.size / 1000:.0f} kB",
            f"{file.macs / 1e6:.1f} M",
            f"{file.parameters / 1e6:.3f} M",
            str(file.nodes),
            _difference(file, input_size),
        )
    return table


def _difference(file: "ConvertedFile", input_size: int) -> str:
    if file.pixel_difference is not None:
        return f"{file.pixel_difference:.2g} px to the runtime with the file above"
    return f"{file.max_difference:.2g} of the crop ({file.max_difference * input_size:.2g} px)"


def contract_table(contract: Contract) -> Table:
    """Lay out a contract, a line a field; long lists are cut short."""
    table = new_table("Contract", "field", "value")
    for name, value in contract.to_dict().items():
        if name == "landmarks":
            value = f"{value['name']}: {len(value['names'])} points, normalized by {value['normalizing_points']}"
        elif name == "fingerprint" and value is not None:
            value = f"seed {value['seed']}, {len(value['output'])} outputs, within {value['tolerance']:g}"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        table.add_row(name, "-" if value in (None, "") else str(value))
    return table


def cost_line(stats: ModelStats) -> str:
    """Sum a network up in one line."""
    return f"{stats.nodes} nodes, {stats.macs / 1e6:.1f} M MACs, {stats.parameters / 1e6:.3f} M parameters"


def quantization_table(report: QuantizationReport, most: int | None = None) -> Table:
    """Lay out what each layer costs in 8 bits, the most expensive first, or at `most` so many of them."""
    shown = report.costs[:most]
    title = f"Landmark deviation with one layer alone in 8 bits, {report.faces} faces"
    if len(shown) < len(report.costs):
        title += f" (the {len(shown)} most expensive of {len(report.costs)} layers)"
    caption = "deviations as fractions of the eye distance; large pose: the faces with the largest yaw"
    table = new_table(title, "layer", figures=("SQNR", "range", "deviation", "large pose"), caption=caption)
    table.min_width = 110
    table.add_column("runs in")
    for cost in shown:
        makes_float = cost.low == cost.high == 0
        table.add_row(
            cost.layer,
            "" if makes_float else f"{cost.sqnr:.1f} dB",
            "float" if makes_float else f"{cost.low:.3g} ... {cost.high:.3g}",
            f"{cost.deviation:.5f}",
            f"{cost.large_pose:.5f}",
            "float" if cost.layer in report.float_layers else "INT8",
        )
    return table


def int8_lines(outcome: "Int8Outcome") -> list[str]:
    """Sum up what an INT8 conversion gave, a line a fact."""
    times, noise = outcome.times, outcome.speed.reason
    fp32, int8 = times["fp32"].milliseconds, times["int8"].milliseconds
    speed = f"fp32 {fp32:.2f} ms, INT8 {int8:.2f} ms ({fp32 / int8:.2f} times as fast)"
    if noise:
        speed = f"too noisy to tell whether INT8 is faster: {noise} (run `pfld-edge bench` when it is idle)"
    tuning = []
    if outcome.quantized.tuning is not None:
        before, after = outcome.quantized.tuning
        kept = "" if after < before else ": it did not help, the file is the one before it"
        tuning = [f"fine-tuning: {before:.4f} eye distances from fp32 before, {after:.4f} after{kept}"]
    lines = [
        f"ranges: {outcome.report.method}, by the landmarks of held-back calibration faces",
        outcome.coverage.describe(),
        f"one face, one thread, this machine: {speed}",
        f"landmarks of held-back faces: {outcome.deviation:.4f} eye distances from fp32",
        *tuning,
        *(f"in float: {operator}" for operator in outcome.report.float_operators[:_FLOAT]),
    ]
    if (left := len(outcome.report.float_operators) - _FLOAT) > 0:
        lines.append(f"in float: {left} more operators (`pfld-edge inspect --json` has all)")
    budget = outcome.budget
    if budget is not None:
        kept = ", ".join(budget.float_layers) or "none"
        lines.append(f"{_drift(budget.drifts[-1])}, within {budget.allowed:.2%}; layers in float: {kept}")
        if budget.float_layers:
            without = "" if noise else f", {times['int8, no layer in float'].milliseconds:.2f} ms"
            lines.append(f"with no layer in float: {_drift(budget.drifts[0])}{without}")
    return lines


def _drift(found: "FaceDrift") -> str:
    every, large_pose = (
        f"{drift.value:+.2%} [{drift.low:+.2%}, {drift.high:+.2%}]" for drift in (found.all, found.large_pose)
    )
    # The deviation is measured over all faces only.
    return f"drift {every}, large pose {large_pose}" if found.large_pose.faces else f"deviation {every}"


def layer_table(found: Inspection, width: int) -> Table:
    """Lay out a network's nodes, a line each, and their sum; a narrow terminal leaves out runtime forms and digits."""
    runs_as = found.fusion.runs_as if found.fusion is not None and width >= _WIDE else None
    hint = f"terminals of {_WIDE} columns also show how each layer runs"
    caption = hint if found.fusion is not None and runs_as is None else None
    table = new_table(cost_line(found.stats), "layer", "operator", caption=caption)
    for name in ("output", "MACs", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    if runs_as is not None:
        table.add_column("runs as", overflow="fold")
    for place, layer in enumerate(found.stats.layers):
        shape = " x ".join(map(str, layer.output_shape[1:])) or "?"
        figures = (_figure(value, width) for value in (layer.macs, layer.parameters))
        table.add_row(layer.name, layer.op_type, shape, *figures, *([] if runs_as is None else [runs_as[place]]))
    return table


def inspection_record(found: Inspection, *, layers: bool) -> dict[str, Any]:
    """Describe one file as plain JSON types, with every layer or with their sums only."""
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
            {**asdict(layer), "runs_as": None if found.fusion is None else found.fusion.runs_as[place]}
            for place, layer in enumerate(found.stats.layers)
        ]
    return record


def comparison_record(
    first: Inspection, second: Inspection, found: Comparison, answers: float | None, *, layers: bool
) -> dict[str, Any]:
    """Describe two files and what differs as plain JSON types; arguments as for `comparison_lines`."""
    return {
        "format": _FORMAT,
        "files": [inspection_record(item, layers=layers) for item in (first, second)],
        "differences": {
            **asdict(found),
            "weights": [{**asdict(pair), "identical": pair.identical} for pair in found.weights],
            "largest_landmark_difference": answers,
        },
    }


def comparison_tables(found: Comparison, first: str, second: str, *, layers: bool) -> Iterator[Table]:
    """Lay out what differs between files of two names, with or without each layer whose weights differ."""
    for title, differences in (
        ("File and network", found.totals),
        ("Contract", found.contract),
        ("Number of operators", found.operators),
    ):
        if differences:
            table = new_table(title, "what differs", first, second)
            for difference in differences:
                table.add_row(difference.name, *_values(difference))
            yield table
    if found.edits:
        hidden = len(found.edits) - _EDITS
        caption = f"and {hidden} more places (--json has all)" if hidden > 0 else None
        table = new_table("Order of operators", "after layer", first, second, caption=caption)
        for edit in found.edits[:_EDITS]:
            table.add_row(edit.after or "(the beginning)", _operators(edit.first), _operators(edit.second))
        yield table
    if layers and any(not pair.identical for pair in found.weights):
        yield _weight_table(found)


def comparison_lines(found: Comparison, answers: float | None) -> list[str]:
    """Sum the weights and the answers up, a line a fact.

    `answers` is the largest difference of a landmark, fractions of the crop; None where that can't be told.
    """
    same = sum(pair.identical for pair in found.weights)
    lines = [f"weights: {same} of {len(found.weights)} layers that both have are identical"]
    for which, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            lines.append(f"layers with weights in the {which} file only: {', '.join(names)}")
    if not (found.totals or found.contract or found.edits or same < len(found.weights)):
        lines.append("no difference found")
    if answers is not None:
        lines.append(f"landmarks on crops of the bundled portraits differ by at most {answers:.2g} of the crop")
    return lines


def _figure(value: int, width: int) -> str:
    if width >= _WIDE or value < 1000:
        return f"{value:,}" if value else ""
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _weight_table(found: Comparison) -> Table:
    caption = "relative: the largest one, as a share of the first file's largest weight"
    if any(pair.rescaled for pair in found.weights):
        caption += "; INT8 against float: equalized channels differ in scale, which changes no landmark"
    figures = ("shape", "largest", "mean", "relative")
    table = new_table("Weights that differ", "layer", "other layer", figures=figures, caption=caption)
    for pair in (pair for pair in found.weights if not pair.identical):
        shapes = dict.fromkeys(" x ".join(map(str, shape)) for shape in pair.shapes)
        table.add_row(
            pair.first,
            "the same" if pair.second == pair.first else pair.second,
            " -> ".join(shapes),
            *("" if value is None else f"{value:.2g}" for value in (pair.largest, pair.mean)),
            "" if pair.relative is None else f"{pair.relative:.2%}",
        )
    return table


def _operators(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "-"


def _values(difference: Difference) -> tuple[str, str]:
    texts = _text(difference.first), _text(difference.second)
    # Long lists may differ after the part that is shown.
    return texts if texts[0] != texts[1] else (texts[0], f"{texts[1]} (differs further on)")


def _text(value: Any) -> str:  # noqa: ANN401 - plain JSON types
    if value in (None, ""):
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    text = "; ".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else str(value)
    return text if len(text) <= _LONG or isinstance(value, str) else f"{text[:_LONG]}..."
