"""`pfld-edge inspect`: what a model file is, and what differs in two."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pfld_edge.output_suffix import check_suffix

if TYPE_CHECKING:
    from pfld_edge_convert.inspection import Inspection

__all__ = ["inspect_command"]


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("other", required=False, type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), help="Draw what each INT8 layer costs, as a PNG.")
@click.option("--layers/--no-layers", default=True, show_default=True, help="List every layer, or only their sum.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect_command(model: Path, other: Path | None, plot: Path | None, layers: bool, as_json: bool) -> None:
    """Print the contract, layers, cost and receptive field of MODEL, an ONNX file or a checkpoint.

    With OTHER, print what differs between the two: contract, cost, graph, weights, landmarks. A checkpoint's layers are
    those of the network that `pfld-edge convert` would make of it.
    """
    from pfld_edge_convert.inspection import inspect_file

    if plot is not None:
        check_suffix(plot, "plot", ".png", ".jpg")
    if plot is not None and other is not None:
        raise click.UsageError("--plot draws one file: leave out the other")
    found = inspect_file(model)
    if other is not None:
        _print_differences(found, inspect_file(other), layers=layers, as_json=as_json)
    else:
        _print_file(found, plot, layers=layers, as_json=as_json)


def _print_file(found: "Inspection", plot: Path | None, *, layers: bool, as_json: bool) -> None:
    from pfld_edge.console import console, note
    from pfld_edge.conversion_report import contract_table, cost_line
    from pfld_edge.cost_plot import draw_costs
    from pfld_edge.inspect_record import inspection_record
    from pfld_edge.layer_table import layer_table
    from pfld_edge.output_file import write_picture
    from pfld_edge.quantization_table import cost_table

    if found.contract is None:
        note(f"{found.path.name} carries no contract")
    if plot is not None and found.quantization is None:
        raise click.UsageError(
            f"{found.path.name} has no quantization report to draw; only INT8 files of `convert` have one"
        )
    if as_json:
        click.echo(json.dumps(inspection_record(found, layers=layers), indent=2))
    else:
        if found.contract is not None:
            console().print(contract_table(found.contract))
        for fact in found.facts:
            console().print(fact, markup=False)
        if found.quantization is not None:
            console().print(cost_table(found.quantization))
        if layers:
            console().print(layer_table(found, console().width))
        else:
            console().print(cost_line(found.stats))
    if plot is not None and found.quantization is not None:
        write_picture(plot, draw_costs(found.quantization))
        click.echo(f"plot -> {plot}", err=True)


def _print_differences(first: "Inspection", second: "Inspection", *, layers: bool, as_json: bool) -> None:
    from pfld_edge.comparison_report import comparison_lines, comparison_tables
    from pfld_edge.console import console
    from pfld_edge.inspect_record import comparison_record
    from pfld_edge_convert.answers import largest_answer_difference
    from pfld_edge_convert.comparison import compare

    found, answers = compare(first, second), largest_answer_difference(first.path, second.path)
    if as_json:
        click.echo(json.dumps(comparison_record(first, second, found, answers, layers=layers), indent=2))
        return
    names = [item.path.name for item in (first, second)]
    if names[0] == names[1]:
        names = [str(item.path) for item in (first, second)]
    for table in comparison_tables(found, *names, layers=layers):
        console().print(table)
    for line in comparison_lines(found, answers):
        console().print(line, markup=False)
