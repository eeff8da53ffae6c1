"""What each layer of an INT8 file costs."""

from html import escape

from pfld_edge.html_report.markup import DASH, details, number, section, table
from pfld_edge_convert.quantization.report import QuantizationReport

__all__ = ["layer_sections"]

_MOST = 12
"""Layers that are shown unfolded."""


def layer_sections(reports: dict[str, QuantizationReport]) -> str:
    """A section a file that carries a report of its quantization.

    Args:
        reports: By the files' names.
    """
    return "".join(_section(name, report) for name, report in reports.items())


def _section(name: str, report: QuantizationReport) -> str:
    rows = [_row(cost.layer, cost.sqnr, cost.deviation, report) for cost in report.costs]
    head = ("layer", "SQNR", "deviation with this layer alone in 8 bits", "runs in")
    body = table(f"The most expensive layers of {name}", head, rows[:_MOST])
    if len(rows) > _MOST:
        body += details(f"all {len(rows)} layers", table(f"All layers of {name}", head, rows))
    note = (
        f"Ranges: {report.method}. SQNR is the power of what a layer makes over the power of its rounding errors; the "
        f"costs were measured on {report.faces} calibration faces."
    )
    return section(f"Layers of {name}", body, note)


def _row(layer: str, sqnr: float, deviation: float, report: QuantizationReport) -> list[str]:
    bar = (
        f'<span class="bar" style="width:{max(0.0, min(60.0, sqnr)) * 1.6:.0f}px"></span> {sqnr:.0f} dB'
        if sqnr
        else DASH
    )
    return [escape(layer), bar, number(deviation, 5), "float" if layer in report.float_layers else "INT8"]
