"""Results of finished units on disk, so that a run that was stopped goes on where it was."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pfld_edge_calib.errors import FaceSetError

__all__ = ["ResultsFolder"]


class ResultsFolder:
    """A folder with a file a unit, each written under a temporary name and renamed.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, run: Mapping[str, str]) -> None:
        """Begin a folder, or go on with one.

        Args:
            path: The folder; made where it is missing.
            run: What results hang on, name and value.

        Raises:
            FaceSetError: It holds another run's results, or something else.
            OSError: It can't be written.
        """
        self.path = path
        head = path / "run.json"
        if head.exists():
            self._check(head, run)
        elif path.is_dir() and any(path.iterdir()):
            raise FaceSetError(f"{path}: holds other files; give a new folder, or that of the run to go on with")
        path.mkdir(parents=True, exist_ok=True)
        if not head.exists():
            _write(head, json.dumps(dict(run), indent=2).encode())

    def get(self, index: int) -> bytes | None:
        """Read a unit's result; None where it is not done."""
        try:
            return self._file(index).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, index: int, result: bytes) -> None:
        """Keep a unit's result; from then on it outlives a kill."""
        file = self._file(index)
        file.parent.mkdir(exist_ok=True)
        _write(file, result)

    def __contains__(self, index: int) -> bool:
        """Whether a unit is done."""
        return self._file(index).exists()

    def _file(self, index: int) -> Path:
        # A thousand a folder: file systems and people dislike more.
        return self.path / f"{index // 1000:05}" / f"{index:08}.npz"

    @staticmethod
    def _check(head: Path, run: Mapping[str, str]) -> None:
        try:
            before = json.loads(head.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise FaceSetError(f"{head}: not the results of a run; give another folder")
        changed = [name for name in run if before.get(name) != run[name]]
        if changed:
            raise FaceSetError(
                f"{head.parent} holds the results of a run with other {', '.join(changed)}: repeat that command to "
                f"finish it, or give another folder"
            )


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
