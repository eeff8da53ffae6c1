"""What is known of an INT8 network, for reading."""

from rich.table import Table

from pfld_edge_convert.int8_stage import Int8Outcome
from pfld_edge_convert.quantization.report import QuantizationReport

__all__ = ["cost_table", "outcome_lines"]


def cost_table(report: QuantizationReport, most: int | None = None) -> Table:
    """Lay out what each layer costs in 8 bits, the most expensive first.

    Args:
        report: Of the file.
        most: Leave out all but so many.
    """
    shown = report.costs[:most]
    title = f"Landmark deviation with one layer alone in 8 bits, {report.faces} faces"
    if len(shown) < len(report.costs):
        title += f" (the {len(shown)} most expensive of {len(report.costs)} layers)"
    table = Table(
        title=title,
        min_width=110,
        caption="deviations as fractions of the eye distance; turned: the faces that turn most",
    )
    table.add_column("layer", overflow="fold")
    for name in ("SQNR", "range", "deviation", "turned"):
        table.add_column(name, justify="right")
    table.add_column("runs in")
    for cost in shown:
        makes_float = cost.low == cost.high == 0
        table.add_row(
            cost.layer,
            "" if makes_float else f"{cost.sqnr:.1f} dB",
            "float" if makes_float else f"{cost.low:.3g} ... {cost.high:.3g}",
            f"{cost.deviation:.5f}",
            f"{cost.turned:.5f}",
            "float" if cost.layer in report.float_layers else "INT8",
        )
    return table


def outcome_lines(outcome: Int8Outcome) -> list[str]:
    """Sum up what an INT8 conversion gave, a line a fact."""
    times = outcome.milliseconds
    lines = [
        f"ranges: {outcome.report.method}, by the landmarks of held-back calibration faces",
        outcome.coverage.describe(),
        (
            f"one face, one thread, this machine: fp32 {times['fp32']:.2f} ms, INT8 {times['int8']:.2f} ms "
            f"({times['fp32'] / times['int8']:.2f} times as fast)"
        ),
    ]
    budget = outcome.budget
    if budget is not None:
        last = budget.drifts[-1]
        kept = ", ".join(budget.float_layers) or "none"
        lines.append(
            f"drift {last.all:+.2%} (turned faces {last.turned:+.2%}), within {budget.allowed:.2%}; "
            f"layers in float: {kept}"
        )
        if budget.float_layers:
            first = budget.drifts[0]
            without = times["int8, no layer in float"]
            lines.append(
                f"with no layer in float: drift {first.all:+.2%} (turned faces {first.turned:+.2%}), {without:.2f} ms"
            )
    return lines
