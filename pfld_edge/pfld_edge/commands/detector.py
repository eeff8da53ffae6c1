"""`pfld-edge detector`: lists and downloads the public face detectors."""

from pathlib import Path

import click

from pfld_edge.options import RESULT_FOLDER, json_option


@click.group("detector", invoke_without_command=True)
@click.pass_context
def detector_command(ctx: click.Context) -> None:
    """List and download face detectors.

    Files lie in $XDG_CACHE_HOME/pfld-edge/detectors, by default ~/.cache/pfld-edge/detectors. Nothing is downloaded
    unless this command is asked to.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@detector_command.command("list")
@json_option("Write the list")
def list_command(json_target: str | None) -> None:
    """Show the detectors that are known by name, and which are here."""
    from rich.table import Table

    from pfld_edge.console import console, write_json
    from pfld_edge_runtime import DETECTOR_FILES, detector_folder
    from pfld_edge_runtime.detection import is_intact

    known = [(entry, entry.path()) for entry in DETECTOR_FILES.values()]
    states = ["yes" if is_intact(entry, path) else "damaged" if path.is_file() else "no" for entry, path in known]
    if json_target is not None:
        rows = [
            {"name": entry.name, "path": str(path), "bytes": entry.size, "license": entry.license, "here": state}
            for (entry, path), state in zip(known, states, strict=True)
        ]
        write_json(json_target, rows)
    if json_target == "-":
        return
    table = Table("name", "file", "kB", "license", "here", box=None)
    for (entry, _), state in zip(known, states, strict=True):
        table.add_row(entry.name, entry.file, f"{entry.size / 1000:.0f}", entry.license, state)
    console().print(table)
    click.echo(f"folder: {detector_folder()}")


@detector_command.command("download")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--folder", type=RESULT_FOLDER, help="Put files here, not in the cache folder.")
def download_command(names: tuple[str, ...], folder: Path | None) -> None:
    """Download the detectors NAME... unless they are here.

    Each file comes from its authors' public address at a fixed commit, and is kept only if its SHA-256 is the one that
    pfld-edge was tested with.
    """
    from pfld_edge.console import progress_bar
    from pfld_edge_runtime import download_detector
    from pfld_edge_runtime.detection import named_file

    for entry in [named_file(name) for name in names]:
        with progress_bar(entry.file, entry.size, unit_bytes=True) as advance:
            path = download_detector(entry.name, folder, advance)
        click.echo(f"{entry.name} -> {path} ({entry.license})")
