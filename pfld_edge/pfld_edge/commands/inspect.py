"""`pfld-edge inspect`: what a model file is."""

from pathlib import Path

import click

__all__ = ["inspect_command"]


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--layers/--no-layers", default=True, show_default=True, help="List every layer, or only their sum.")
def inspect_command(model: Path, layers: bool) -> None:
    """Print the contract, layers and multiply-accumulates of MODEL, an ONNX file or a checkpoint.

    A checkpoint's layers are those of the network that `pfld-edge convert` would make of it.
    """
    from pfld_edge.console import console, note_assumed
    from pfld_edge.conversion_report import contract_table, cost_line, layer_table
    from pfld_edge_convert.inspection import inspect_file

    found = inspect_file(model)
    note_assumed(model.name, found.contract is None)
    if found.contract is not None:
        console().print(contract_table(found.contract))
    for fact in found.facts:
        console().print(fact, markup=False)
    if layers:
        console().print(layer_table(found.stats))
    else:
        console().print(cost_line(found.stats))
