"""`pfld-edge demo`: landmarks in a browser."""

from pathlib import Path

import click

from pfld_edge.options import BUNDLED, RESULT_FOLDER


@click.command("demo")
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--detector",
    default=BUNDLED,
    show_default=True,
    help="Finds the faces: bundled, yunet (`pfld-edge detector`) or a YuNet ONNX file.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="The next free one if it is taken."
)
@click.option("--export", "export", type=RESULT_FOLDER, help="Write the folder, and end.")
@click.option(
    "--onnxruntime-web",
    "web_runtime",
    type=click.Path(path_type=Path, exists=True),
    help="Folder or .tgz of onnxruntime-web, for use without a network.",
)
@click.option("--no-open", is_flag=True, help="Don't open a browser.")
def demo_command(
    models: tuple[Path, ...],
    detector: str,
    host: str,
    port: int,
    export: Path | None,
    web_runtime: Path | None,
    no_open: bool,
) -> None:
    """Find landmarks in a browser, on the camera or a photograph.

    Give the fp32 and the INT8 file that `pfld-edge convert` wrote to see both side by side; without MODEL it is the
    bundled INT8 network. Photographs stay in the browser.
    """
    import tempfile
    import webbrowser

    from pfld_edge.demo.page import open_server, write_page_folder
    from pfld_edge_runtime import BUNDLED_MODEL

    chosen = models or (Path(BUNDLED_MODEL),)
    if export is not None:
        write_page_folder(export, chosen, web_runtime, detector)
        click.echo(f"page -> {export}")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_page_folder(Path(folder), chosen, web_runtime, detector)
        with open_server(Path(folder), host, port) as server:
            address = f"http://{host}:{server.server_address[1]}/"
            click.echo(f"{address} (Ctrl-C ends it)")
            if not no_open:
                webbrowser.open(address)
            server.serve_forever()
