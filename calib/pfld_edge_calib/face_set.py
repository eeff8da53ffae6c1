"""Opens whatever a user calls a set of faces."""

from pathlib import Path

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.points_csv import read_points_csv
from pfld_edge_calib.wflw import read_wflw, wflw_list

__all__ = ["labelled_faces"]


def labelled_faces(path: Path, split: str = "test", images: Path | None = None) -> list[Face]:
    """Read faces with known landmarks.

    Args:
        path: A WFLW folder, or a CSV of points.
        split: Which list of a WFLW folder, ``train`` or ``test``.
        images: For a CSV, the folder that its image column is relative to.

    Raises:
        FaceSetError: The path is neither, or is damaged.
    """
    if path.is_dir():
        if not (path / "WFLW_annotations").is_dir():
            raise FaceSetError(f"{path}: no labelled faces here (expected a WFLW folder or a CSV of points)")
        if not wflw_list(path, split).is_file():
            raise FaceSetError(f"{path}: the official list of the {split} split is missing ({wflw_list(path, split)})")
        return read_wflw(path, split)
    if path.suffix.lower() == ".csv":
        return read_points_csv(path, images)
    if not path.exists():
        raise FaceSetError(f"{path}: no such folder or file")
    raise FaceSetError(f"{path}: expected a WFLW folder or a CSV of points (image,x0,y0,...)")
