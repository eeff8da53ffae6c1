"""The names that results may have."""

from pathlib import Path

import click

__all__ = ["check_suffix"]

_SPELLINGS = {".jpeg": ".jpg", ".htm": ".html"}


def check_suffix(path: Path, what: str, *suffixes: str) -> None:
    """Refuse a file name before work on it begins.

    Args:
        path: Where a result goes.
        what: What it is, for the message.
        suffixes: What its name may end in, in lower case; ``.jpg`` and ``.html`` stand for ``.jpeg`` and ``.htm`` too.

    Raises:
        click.UsageError: It ends in something else.
    """
    suffix = path.suffix.lower()
    if _SPELLINGS.get(suffix, suffix) not in suffixes:
        raise click.UsageError(f"the {what} must end in {' or '.join(suffixes)}, not {path.name}")
