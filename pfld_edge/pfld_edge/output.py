"""Where results go: files that are written whole or not at all."""

from pathlib import Path

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.files import write_atomically
from pfld_edge_runtime import PfldEdgeError


class InputError(PfldEdgeError, ValueError):
    """What should be read can't be."""


class OutputError(PfldEdgeError, ValueError):
    """The place that results should go to can't be used."""


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write ``(H, W, 3)`` uint8 BGR as PNG or JPEG, by the file's suffix, atomically.

    Raises:
        OutputError: The picture is too large for the format (a JPEG side over 65,535 pixels).
        OSError: The folder can't be made or written to.
    """
    try:
        done, data = cv2.imencode(path.suffix.lower(), picture)
    except cv2.error:
        done = False
    if not done:
        raise OutputError(
            f"{path}: a picture of {picture.shape[1]} x {picture.shape[0]} can't be written as {path.suffix}"
        )
    write_atomically(path, data.tobytes())


def write_json(target: str, text: str) -> None:
    """Write to a file, or to standard output where the target is ``-``.

    Raises:
        OSError: The file can't be written.
    """
    if target == "-":
        click.echo(text)
    else:
        write_atomically(Path(target), f"{text}\n".encode())
