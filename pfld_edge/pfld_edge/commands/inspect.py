"""`pfld-edge inspect`: what a model file is, and what differs in two."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pfld_edge.options import PATH, json_option, result_file

if TYPE_CHECKING:
    from pfld_edge_convert.inspection import Inspection


@click.command("inspect")
@click.argument("model", type=PATH)
@click.argument("other", required=False, type=PATH)
@click.option("--plot", type=result_file("plot", ".png", ".jpg"), help="Draw what each INT8 layer costs, as a PNG.")
@click.option("--layers/--no-layers", default=True, show_default=True, help="List every layer, or only their sum.")
@json_option("Write all facts")
def inspect_command(model: Path, other: Path | None, plot: Path | None, layers: bool, json_target: str | None) -> None:
    """Print the contract, layers and cost of MODEL, an ONNX file or a checkpoint.

    With OTHER, print what differs between the two: contract, cost, graph, weights, landmarks. A checkpoint's layers are
    those of the network that `pfld-edge convert` would make of it.
    """
    from pfld_edge_convert.inspection import inspect_file

    if plot is not None and other is not None:
        raise click.UsageError("--plot draws one file: leave out the other")
    found = inspect_file(model)
    if other is not None:
        _print_differences(found, inspect_file(other), layers=layers, json_target=json_target)
    else:
        _print_file(found, plot, layers=layers, json_target=json_target)


def _print_file(found: "Inspection", plot: Path | None, *, layers: bool, json_target: str | None) -> None:
    from pfld_edge.console import console, note, write_json
    from pfld_edge.model_tables import contract_table, cost_line, inspection_record, layer_table, quantization_table

    if found.contract is None:
        note(f"{found.path.name} carries no contract")
    if plot is not None and found.quantization is None:
        raise click.UsageError(
            f"{found.path.name} has no quantization report to draw; only INT8 files of `convert` have one"
        )
    if json_target is not None:
        write_json(json_target, inspection_record(found, layers=layers))
    if json_target != "-":
        if found.contract is not None:
            console().print(contract_table(found.contract))
        for fact in found.facts:
            console().print(fact, markup=False)
        if found.quantization is not None:
            console().print(quantization_table(found.quantization))
        console().print(layer_table(found, console().width) if layers else cost_line(found.stats))
    if plot is not None and found.quantization is not None:
        from pfld_edge.report.charts import cost_chart, write_chart

        write_chart(plot, cost_chart, found.quantization)
        click.echo(f"plot -> {plot}", err=True)


def _print_differences(first: "Inspection", second: "Inspection", *, layers: bool, json_target: str | None) -> None:
    from pfld_edge.console import console, write_json
    from pfld_edge.model_tables import comparison_lines, comparison_record, comparison_tables
    from pfld_edge_convert.inspection import compare
    from pfld_edge_convert.landmark_models import largest_answer_difference

    found, answers = compare(first, second), largest_answer_difference(first.path, second.path)
    if json_target is not None:
        write_json(json_target, comparison_record(first, second, found, answers, layers=layers))
    if json_target == "-":
        return
    names = [item.path.name for item in (first, second)]
    if names[0] == names[1]:
        names = [str(item.path) for item in (first, second)]
    for table in comparison_tables(found, *names, layers=layers):
        console().print(table)
    for line in comparison_lines(found, answers):
        console().print(line, markup=False)
