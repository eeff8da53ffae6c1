"""`pfld-edge inspect`: what a model file is."""

from pathlib import Path

import click

__all__ = ["inspect_command"]


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), help="Draw what each INT8 layer costs, as a PNG.")
@click.option("--layers/--no-layers", default=True, show_default=True, help="List every layer, or only their sum.")
def inspect_command(model: Path, plot: Path | None, layers: bool) -> None:
    """Print the contract, layers and multiply-accumulates of MODEL, an ONNX file or a checkpoint.

    A checkpoint's layers are those of the network that `pfld-edge convert` would make of it.
    """
    from pfld_edge.console import console, note_assumed
    from pfld_edge.conversion_report import contract_table, cost_line, layer_table
    from pfld_edge.cost_plot import draw_costs
    from pfld_edge.output_file import write_picture
    from pfld_edge.quantization_table import cost_table
    from pfld_edge_convert.inspection import inspect_file

    if plot is not None and plot.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise click.UsageError(f"the plot must end in .png or .jpg, not {plot.name}")
    found = inspect_file(model)
    note_assumed(model.name, found.contract is None)
    if found.contract is not None:
        console().print(contract_table(found.contract))
    if plot is not None and found.quantization is None:
        raise click.UsageError(
            f"{model.name} has no quantization report to draw; only INT8 files of `convert` have one"
        )
    for fact in found.facts:
        console().print(fact, markup=False)
    if found.quantization is not None:
        console().print(cost_table(found.quantization))
        if plot is not None:
            write_picture(plot, draw_costs(found.quantization))
            click.echo(f"plot -> {plot}", err=True)
    if layers:
        console().print(layer_table(found.stats))
    else:
        console().print(cost_line(found.stats))
