"""How commands print and write: tables and JSON to standard output, notes and progress to standard error."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from pfld_edge_calib.files import write_atomically
from pfld_edge_calib.photo import other_files
from pfld_edge_runtime import PfldEdgeError

if TYPE_CHECKING:
    from pfld_edge_calib import Face
    from pfld_edge_runtime import Contract

_NAMED = 20
"""Files that can't be read, or are left out, that are named; the others are counted."""


class InputError(PfldEdgeError, ValueError):
    """What should be read can't be."""


class OutputError(PfldEdgeError, ValueError):
    """The place that results should go to can't be used."""


def console(*, stderr: bool = False) -> Console:
    """Open a console; wide enough for whole tables where the output is not a terminal."""
    opened = Console(stderr=stderr, highlight=False)
    return opened if opened.is_terminal else Console(stderr=stderr, highlight=False, width=140)


def new_table(title: str, *names: str, figures: Sequence[str] = (), caption: str | None = None) -> Table:
    """Start a table with columns of names, which fold where they are long, then of figures, aligned right."""
    table = Table(title=title, caption=caption)
    for name in names:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right")
    return table


def write_json(target: str, record: Any) -> None:  # noqa: ANN401 - plain JSON types
    """Write a record, or its JSON text, to a file, or to standard output where the target is ``-``.

    Raises:
        OSError: The file can't be written.
    """
    text = record if isinstance(record, str) else json.dumps(record, indent=2)
    if target == "-":
        click.echo(text)
    else:
        write_atomically(Path(target), f"{text}\n".encode())


def note(text: str) -> None:
    """Print a remark that is not part of the result."""
    console(stderr=True).print(f"Note: {text}", markup=False, soft_wrap=True)


def note_assumed(name: str, assumed: bool, contract: "Contract | None" = None) -> None:
    """Say that a file's preprocessing was assumed, where it was; without a contract the published one."""
    if assumed:
        kind, order, margin = "PFLD", "BGR", 1.2
        if contract is not None:
            kind, order, margin = contract.model, contract.color_order.upper(), contract.crop.margin
        note(f"{name} carries no contract: taken as published {kind} ({order}, landmark box x {margin:g})")


def note_left_out(folder: Path) -> None:
    """Name the files of a folder that are no photographs, and the folders that can't be read."""
    others, closed = list[str](), list[str]()
    for path in other_files(folder):
        (closed if path.is_dir() else others).append(str(path.relative_to(folder)))
    if others:
        note(f"{folder}: left out, as no photographs: {first_names(others)}")
    if closed:
        note(f"{folder}: left out, as folders that can't be read: {first_names(closed)}")


def note_repeated(faces: "Sequence[Face]") -> None:
    """Name the photographs of faces that repeat an earlier one of the set, with the same box."""
    counts = Counter((face.image, *face.bbox_xyxy) for face in faces)
    names = dict.fromkeys(str(image) for (image, *_), count in counts.items() if count > 1)
    if names:
        note(f"faces that are listed more than once, with the same box, count as often: {first_names(list(names))}")


def note_faceless(photos: Sequence[str]) -> None:
    """Count and name the photographs in which no face was found."""
    if photos:
        note(f"no face found in {len(photos)} photograph{'s' * (len(photos) > 1)}: {first_names(photos)}")


def first_names(names: Sequence[str], most: int = _NAMED) -> str:
    """List names, at most so many; the others are counted."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class SkippedFiles:
    """What every command does with files that can't be read: it names them, counts them, and fails at the end."""

    def __init__(self, *, strict: bool = False) -> None:
        """Begin; `strict` makes the first such file an error."""
        self._strict = strict
        self._seen: set[str] = set()

    def __call__(self, error: Exception) -> None:
        """Pass over the file that `error` is about, once for each file; raises it where that is asked for."""
        if self._strict:
            raise error
        if str(error) not in self._seen and len(self._seen) < _NAMED:
            note(f"skipped {error}")
        self._seen.add(str(error))

    def check(self, total: int | None = None) -> None:
        """Raise a ClickException if files were skipped, of `total` where that is known."""
        if self._seen:
            count, named = len(self._seen), "" if len(self._seen) <= _NAMED else f"the first {_NAMED} are "
            many = f"{count} of {total} files" if total is not None else f"{count} file{'s' * (count > 1)}"
            raise click.ClickException(f"{many} could not be read ({named}named above)")


@contextmanager
def progress_bar(
    name: str, total: int | None = None, done: int = 0, *, unit_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show progress on a terminal, and nothing elsewhere; gives the function that moves it.

    Without a total it shows a count, from the first on.
    """
    amount: ProgressColumn = DownloadColumn() if unit_bytes else MofNCompleteColumn()
    columns: tuple[ProgressColumn, ...] = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    if total is None:
        columns = (TextColumn("{task.description}"), TextColumn("{task.completed}"))
    terminal = console(stderr=True)
    # Elsewhere than on a terminal rich would leave an empty line.
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(name, total=total, completed=done, visible=total is not None)
        yield lambda count: progress.update(task, advance=count, visible=True)
