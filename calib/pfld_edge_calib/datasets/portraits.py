"""The two public-domain portraits that come with the toolkit."""

from dataclasses import replace
from pathlib import Path

from pfld_edge_calib.datasets.points_csv import read_points_csv
from pfld_edge_calib.face import Face
from pfld_edge_runtime import FIVE_POINTS, IBUG_68, WFLW_98, Contract, five_points, landmarks_68, tight_box
from pfld_edge_runtime.detection import scheme_box_map

__all__ = ["PORTRAITS", "portraits"]

PORTRAITS = Path(__file__).parents[1] / "portraits"
"""Folder of the portraits; its README names their sources."""

_MAPPINGS = {IBUG_68: landmarks_68, FIVE_POINTS: five_points}


def portraits(contract: Contract | None = None) -> list[Face]:
    """Read two faces with 98 landmarks each, pseudo-labelled by published networks: for a smoke test, not a benchmark.

    Args:
        contract: For a model of another landmark scheme: the faces get its points where they follow from the 98, else
            its box only, without landmarks.
    """
    faces = read_points_csv(PORTRAITS / "landmarks.csv")
    scheme = WFLW_98 if contract is None else contract.landmarks
    if contract is None or scheme == WFLW_98:
        return faces
    if scheme not in _MAPPINGS:
        fit = scheme_box_map(contract)
        return [replace(face, bbox_xyxy=fit(face.bbox_xyxy[None])[0], landmarks=None) for face in faces]
    mapped = [_MAPPINGS[scheme](face.landmarks)[0] for face in faces]
    return [
        replace(face, bbox_xyxy=tight_box(points), landmarks=points) for face, points in zip(faces, mapped, strict=True)
    ]
