"""Files are written whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest

from pfld_edge.console import OutputError
from pfld_edge.drawing import write_picture
from pfld_edge_calib.files import write_atomically


def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    write_atomically(path, b"{}")
    write_atomically(path, b"[]")
    assert path.read_bytes() == b"[]"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def disk_full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_too_large_for_its_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"70000 x 1 can't be written as \.jpg"):
        write_picture(tmp_path / "wide.jpg", np.zeros((1, 70000, 3), np.uint8))
