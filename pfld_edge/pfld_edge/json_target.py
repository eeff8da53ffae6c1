"""An option's value that says where JSON goes."""

from pathlib import Path

import click

__all__ = ["JsonTarget", "write_json"]


class JsonTarget(click.ParamType[str]):
    """A ``.json`` file, or ``-`` for standard output."""

    name = "file"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what is no name of a JSON file: the word after `--json` may be meant as something else."""
        text = str(value)
        if text != "-" and Path(text).suffix.lower() != ".json":
            self.fail(f"{text!r} is no .json file; write --json - for standard output", param, ctx)
        return text


def write_json(target: str, text: str) -> None:
    """Write to the file, or to standard output.

    Raises:
        OSError: The file can't be written.
    """
    from pfld_edge.output_file import write_atomically

    if target == "-":
        click.echo(text)
    else:
        write_atomically(Path(target), f"{text}\n".encode())
