"""What commands say beside their results: notes and progress, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

__all__ = ["byte_progress", "console", "face_progress", "note", "note_assumed", "photo_count"]


def console(*, stderr: bool = False) -> Console:
    """Open a console; wide enough for whole tables where the output is not a terminal."""
    opened = Console(stderr=stderr, highlight=False)
    return opened if opened.is_terminal else Console(stderr=stderr, highlight=False, width=140)


def note(text: str) -> None:
    """Print a remark that is not part of the result."""
    console(stderr=True).print(f"Note: {text}", markup=False, soft_wrap=True)


def note_assumed(name: str, assumed: bool) -> None:
    """Say that a file's preprocessing was assumed, where it was."""
    if assumed:
        note(f"{name} carries no contract: taken as published PFLD (BGR, landmark box x 1.2)")


@contextmanager
def face_progress(name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a progress bar over faces or photographs, some of them done; gives the function that moves it."""
    with _bar(name, total, MofNCompleteColumn(), done) as advance:
        yield advance


@contextmanager
def byte_progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar over the bytes of a download; gives the function that moves it."""
    with _bar(name, total, DownloadColumn()) as advance:
        yield advance


@contextmanager
def _bar(name: str, total: int, amount: ProgressColumn, done: int = 0) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    terminal = console(stderr=True)
    # Elsewhere than on a terminal rich would leave an empty line.
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(name, total=total, completed=done)

        def advance(count: int) -> None:
            progress.advance(task, count)

        yield advance


@contextmanager
def photo_count(name: str) -> Iterator[Callable[[int], None]]:
    """Show how many are done where nobody knows how many there are; nothing until the first."""
    columns, terminal = (TextColumn("{task.description}"), TextColumn("{task.completed}")), console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(name, total=None, visible=False)

        def advance(count: int) -> None:
            progress.update(task, advance=count, visible=True)

        yield advance
