"""A network layer by layer, as a table."""

from rich.table import Table

from pfld_edge.conversion_report import cost_line
from pfld_edge_convert.inspection import Inspection

__all__ = ["layer_table"]

_WIDE = 110
"""Columns of a terminal that holds all that there is to say."""


def layer_table(found: Inspection, width: int) -> Table:
    """Lay out a network's nodes, a line each, and their sum.

    Args:
        found: A network.
        width: Of the terminal; a narrow one leaves out how each layer runs, and rounds.
    """
    runs_as = found.fusion.runs_as if found.fusion is not None and width >= _WIDE else None
    sees = any(field is not None for field in found.fields)
    caption = ["sees: pixels of the picture"] if sees else []
    if found.fusion is not None and runs_as is None:
        caption.append(f"terminals of {_WIDE} columns also show how each layer runs")
    table = Table(title=cost_line(found.stats), caption="; ".join(caption) or None)
    table.add_column("layer", overflow="fold")
    table.add_column("operator", overflow="fold")
    for name in ("output", *(["sees"] if sees else []), "MACs", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    if runs_as is not None:
        table.add_column("runs as", overflow="fold")
    for place, layer in enumerate(found.stats.layers):
        shape = " x ".join(map(str, layer.output_shape[1:])) or "?"
        field = found.fields[place]
        figures = [_figure(value, width) for value in (layer.macs, layer.parameters)]
        seen = ["" if field is None else field.describe()] if sees else []
        table.add_row(layer.name, layer.op_type, shape, *seen, *figures, *([] if runs_as is None else [runs_as[place]]))
    return table


def _figure(value: int, width: int) -> str:
    if width >= _WIDE or value < 1000:
        return f"{value:,}" if value else ""
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"
