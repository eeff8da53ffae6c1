"""`pfld-edge detector`: lists and downloads the public face detectors."""

from pathlib import Path

import click

from pfld_edge.options import BUNDLED, RESULT_FOLDER, json_option


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
    """Show the detectors that are known by name, and which are here. The first comes with pfld-edge."""
    from rich.table import Table

    from pfld_edge.console import console, write_json
    from pfld_edge_runtime import BUNDLED_DETECTOR, DETECTOR_FILES, detector_folder
    from pfld_edge_runtime.detection.catalogue import is_intact

    known = [(BUNDLED, BUNDLED_DETECTOR, BUNDLED_DETECTOR.stat().st_size, "Apache-2.0", "yes")]
    for entry in DETECTOR_FILES.values():
        path = entry.path()
        state = "yes" if is_intact(entry, path) else "damaged" if path.is_file() else "no"
        known.append((entry.name, path, entry.size, entry.license, state))
    if json_target is not None:
        names = ("name", "path", "bytes", "license", "here")
        write_json(json_target, [{**dict(zip(names, row, strict=True)), "path": str(row[1])} for row in known])
    if json_target == "-":
        return
    table = Table("name", "file", "kB", "license", "here", box=None)
    for name, path, size, terms, state in known:
        table.add_row(name, path.name, f"{size / 1000:.0f}", terms, state)
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
    from pfld_edge_runtime.detection.catalogue import named_file

    for entry in [named_file(name) for name in names]:
        with progress_bar(entry.file, entry.size, unit_bytes=True) as advance:
            path = download_detector(entry.name, folder, advance)
        click.echo(f"{entry.name} -> {path} ({entry.license})")
