"""COCO keypoint files (Lin et al., "Microsoft COCO", ECCV 2014; the format of cocodataset.org, "Data format")."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face, labelled_face
from pfld_edge_calib.files import named_file


def read_coco(path: Path, images: Path | None = None) -> list[Face]:
    """Read the keypoint annotations of a COCO file, any number of points each, in their order.

    A point of visibility 0 is unlabelled: its weight is 0. The box is the tight box of the labelled points, not the
    ``bbox`` of the annotation, so that every dataset is cropped alike. Crowds, and annotations with fewer than two
    labelled points, are left out. ``file_name`` is relative to `images`, or to the file's own folder where that is
    None. A file that isn't such a file, or whose annotations differ in their numbers of points, is a FaceSetError.
    """
    if not path.is_file():
        raise FaceSetError(f"{path}: no such COCO file")
    try:
        # From bytes json finds out itself whether they are UTF-8, with or without a mark, or UTF-16.
        record = json.loads(path.read_bytes())
        names = {image["id"]: image["file_name"] for image in record["images"]}
        annotations = list(record["annotations"])
    except json.JSONDecodeError as error:
        raise FaceSetError(f"{path}, line {error.lineno}: not a COCO file, nor JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise FaceSetError(f"{path}: not a text file, or not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FaceSetError(
            f"{path}: not a COCO file, which has lists `images`, each with id and file_name, and `annotations`"
        ) from error
    root = path.parent if images is None else images
    found = (_face(item, names, root, f"{path}, annotation {i}") for i, item in enumerate(annotations, start=1))
    faces = [face for face in found if face is not None]
    if not faces:
        raise FaceSetError(f"{path}: no annotation with keypoints")
    counts = {len(face.landmarks) for face in faces if face.landmarks is not None}
    if len(counts) > 1:
        raise FaceSetError(f"{path}: annotations have different numbers of points: {sorted(counts)}")
    return faces


def _face(item: Mapping[str, Any], names: Mapping[Any, str], root: Path, where: str) -> Face | None:
    try:
        if int(item.get("iscrowd") or 0):  # some writers quote the number
            return None
        values = np.array(item.get("keypoints", ()), np.float64)
        name = names.get(item["image_id"])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise FaceSetError(
            f"{where}: an annotation has image_id, keypoints, a list of numbers, and iscrowd, 0 or 1"
        ) from error
    if not isinstance(name, str):
        raise FaceSetError(f"{where}: its image_id {item['image_id']!r} is no image with a file_name in this file")
    if values.ndim != 1 or len(values) % 3:
        raise FaceSetError(f"{where}: keypoints must be x, y, visibility, repeated, in pixels")
    values = values.reshape(-1, 3)
    if not len(values):
        return None
    weights = (values[:, 2] > 0).astype(np.float32)
    points = values[:, :2]
    face = labelled_face(named_file(root, name), points, where, point_weights=weights, group=name)
    return face if weights.sum() > 1 else None
