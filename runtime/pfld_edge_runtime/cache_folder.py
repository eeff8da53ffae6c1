"""Where files that can be had again lie between runs."""

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Give pfld-edge's cache folder: ``$XDG_CACHE_HOME/pfld-edge``, by default ``~/.cache/pfld-edge``.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG Base Directory Specification has it.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "pfld-edge"
