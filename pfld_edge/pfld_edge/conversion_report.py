"""Tables of what a conversion made and of what a model is."""

from typing import TYPE_CHECKING

from rich.table import Table

from pfld_edge_convert.model_stats import ModelStats
from pfld_edge_runtime import Contract

if TYPE_CHECKING:
    # `inspect` shows contracts too, and must not wait for torch.
    from pfld_edge_convert.pipeline import ConversionReport, ConvertedFile

__all__ = ["contract_table", "conversion_table", "cost_line"]


def conversion_table(report: "ConversionReport", input_size: int) -> Table:
    """Lay out the files that were written, a line each.

    Args:
        report: What `convert` gave.
        input_size: Side of the crop in pixels, to give differences in pixels too.
    """
    table = Table(title="Written")
    table.add_column("file", overflow="fold")
    for name in ("size", "MACs", "parameters", "nodes", "largest difference to torch"):
        table.add_column(name, justify="right")
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
    table = Table(title="Contract")
    table.add_column("field")
    table.add_column("value", overflow="fold")
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
