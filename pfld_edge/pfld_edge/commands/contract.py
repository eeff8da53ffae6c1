"""`pfld-edge contract`: shows, writes and finds what a model's file must say of its network."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pfld_edge.options import PATH, images_option, json_option, output_option, result_file, split_option, strict_option

if TYPE_CHECKING:
    from pfld_edge_convert.contract_search import ContractSearch
    from pfld_edge_runtime import Contract

_FORMAT = "pfld-edge-contract-1"
_EXPLAINED = {"-1..1": "-1..1 (127.5/127.5 or 127.5/128)"}


@click.command("contract")
@click.argument("model", type=PATH)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Write a field into the file and the JSON beside it; may be repeated.",
)
@click.option(
    "--contract", "source", type=PATH, help="Write the contract of this JSON file, before what --set changes."
)
@click.option("--find", is_flag=True, help="Find the contract on faces whose landmarks are known; writes nothing.")
@click.option("--data", type=PATH, help="These faces for --find (WFLW folder, CSV, COCO, shards), not the two bundled.")
@images_option
@split_option
@click.option(
    "--input-size", type=click.IntRange(16, 4096), help="Side of the input for --find, where the file has none."
)
@strict_option
@output_option(
    "Write the contract, found or carried, as a .json file.", result_file("contract", ".json"), required=False
)
@json_option("Write what was found: fields, ranking, contract")
def contract_command(
    model: Path,
    settings: tuple[str, ...],
    source: Path | None,
    find: bool,
    data: Path | None,
    images: Path | None,
    split: str,
    input_size: int | None,
    strict: bool,
    output: Path | None,
    json_target: str | None,
) -> None:
    """Show the contract of MODEL; --set writes fields of it, --find finds it for a file that carries none.

    --find tries colour order, normalization, layout, crop, output and the order of the points, and says of each whether
    it is sure. Two bundled portraits decide less than some dozens of faces of your own (--data). Photographs that can't
    be read are skipped and named; the exit status is then 2.
    """
    from pfld_edge.console import SkippedFiles
    from pfld_edge_calib import open_faces
    from pfld_edge_runtime import ModelFileError

    if find and (settings or source is not None):
        raise click.UsageError("--find writes nothing into the model: leave out --set and --contract")
    if not find and (data is not None or input_size is not None or strict):
        raise click.UsageError("--data, --input-size and --strict belong to --find")
    if not model.is_file():
        raise ModelFileError(f"{model}: no such model file")
    if (find or settings or source) and model.suffix.lower() != ".onnx":
        raise click.UsageError(f"{model.name} is no ONNX file; only these are searched and written")
    skip = SkippedFiles(strict=strict)
    if find:
        from pfld_edge_convert.contract_search import search_contract

        faces = None if data is None else open_faces(data, split, images, skip=skip).load(skip)
        found = search_contract(model, faces, input_size, skip)
        _print_search(model, found, json_target)
        contract = found.contract
    else:
        contract = _written(model, settings, source) if settings or source else _carried(model)
        _print_contract(contract, json_target)
    if output is not None:
        from pfld_edge_calib.files import write_atomically

        if contract is None:
            raise click.UsageError(f"there is no contract to write to {output}")
        write_atomically(output, f"{contract.to_json(indent=2)}\n".encode())
        click.echo(f"contract -> {output}", err=True)
    skip.check()


def _carried(model: Path) -> "Contract | None":
    from pfld_edge.console import note
    from pfld_edge_convert.contract_fields import carried_contract

    contract = carried_contract(model)
    if contract is None:
        note(f"{model.name} carries no contract: `--find` looks for one, `--set` writes one")
    return contract


def _written(model: Path, settings: tuple[str, ...], source: Path | None) -> "Contract":
    from pfld_edge_convert.contract_fields import carried_contract, changed_contract, contract_of_graph, write_contract
    from pfld_edge_convert.model_file import load_onnx
    from pfld_edge_runtime import Contract
    from pfld_edge_runtime.errors import naming

    values = {}
    for text in settings:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.UsageError(f"--set {text!r} is no field and value; write --set margin=1.2")
        values[name.strip()] = value.strip()
    base = carried_contract(model)
    if source is not None:
        with naming(source):
            base = Contract.from_json(source.read_text(encoding="utf-8", errors="replace"))
    made = contract_of_graph(load_onnx(model), model.name, values) if base is None else changed_contract(base, values)
    contract = write_contract(model, made)
    click.echo(f"contract -> {model} and {model.with_suffix('.json')}", err=True)
    return contract


def _print_contract(contract: "Contract | None", json_target: str | None) -> None:
    from pfld_edge.console import console, write_json
    from pfld_edge.model_tables import contract_table

    if json_target is not None:
        write_json(json_target, {"format": _FORMAT, "contract": None if contract is None else contract.to_dict()})
    if json_target != "-" and contract is not None:
        console().print(contract_table(contract))


def _print_search(model: Path, found: "ContractSearch", json_target: str | None) -> None:
    from pfld_edge.console import console, new_table, note, write_json

    if json_target is not None:
        contract = None if found.contract is None else found.contract.to_dict()
        write_json(json_target, {"format": _FORMAT, "sure": found.sure, **asdict(found), "contract": contract})
    if json_target == "-":
        return
    fields = new_table(f"{model.name}: {found.num_landmarks} points", "field", "best", "how sure", "as good")
    for finding in found.findings:
        values = [_EXPLAINED.get(value, value) for value in (finding.value, *finding.rivals)]
        fields.add_row(finding.field, values[0], "sure" if finding.sure else "can't tell", ", ".join(values[1:]))
    ranking = new_table("Ranking on varied crops", "colours", "normalization", figures=("NME", "equivariance error"))
    for item in found.ranking:
        trial = item.hypothesis
        ranking.add_row(trial.color_order, trial.normalization, f"{item.nme:.4f}", f"{item.spread:.4f}")
    console().print(fields)
    console().print(ranking)
    if not found.plausible:
        note("the network finds no face's landmarks under any of these: nothing is sure")
    elif found.contract is None:
        note("a contract has no words for this output: convert the file, which rewrites its output")
    elif not found.sure:
        note("what can't be told makes little difference on these faces; more faces (--data) tell more")
