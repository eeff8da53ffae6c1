"""Folders of ``.pts`` files, as iBUG's 300-W has them (Sagonas et al., "300 Faces in-the-Wild Challenge", ICCVW 2013).

``name.pts`` lies beside its photograph, ``name.jpg`` or of another format, and holds one face::

    version: 1
    n_points: 68
    {
    446.000 91.000
    ...
    }

The first pixel of such a file is 1, 1, as in Matlab.
"""

import re
from pathlib import Path

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face, labelled_face, without_unlabelled
from pfld_edge_calib.files import number_fault, read_lines
from pfld_edge_calib.photo import PHOTO_SUFFIXES, other_files

_HEADER = re.compile(r"\s*(version|n_points)\s*:\s*(\S+)\s*", re.IGNORECASE)


def pts_files(folder: Path) -> list[Path]:
    """List the ``.pts`` files under a folder recursively, sorted by path; hidden ones are passed over."""
    return [path for path in other_files(folder) if path.suffix.lower() == ".pts" and not path.is_dir()]


def read_pts(folder: Path, images: Path | None = None) -> list[Face]:
    """Read the faces of all ``.pts`` files under a folder; their photographs lie in the same places under `images`.

    Where that is None they lie beside the files. A point at -1, -1, or without numbers, is unlabelled. A face's group
    is its photograph's name. A folder without such files, a damaged one, and files that differ in their numbers of
    points are a FaceSetError.
    """
    files = pts_files(folder) if folder.is_dir() else []
    if not files:
        raise FaceSetError(f"{folder}: {'no .pts files in it' if folder.is_dir() else 'no such folder'}")
    places = {path.parent: (images or folder) / path.parent.relative_to(folder) for path in files}
    photos = {place: _photos_by_stem(place) for place in places.values()}
    faces = []
    for path in files:
        place = places[path.parent]
        # One that is missing is named where photographs are read.
        image = place / photos[place].get(path.stem, f"{path.stem}.jpg")
        faces.append(_face(path, image, image.relative_to(images or folder).as_posix()))
    counts = {len(face.landmarks): path for face, path in zip(faces, files, strict=True) if face.landmarks is not None}
    if len(counts) > 1:
        named = ", ".join(f"{count} in {path}" for count, path in sorted(counts.items()))
        raise FaceSetError(f"{folder}: files have different numbers of points: {named}")
    return faces


def _photos_by_stem(folder: Path) -> dict[str, str]:
    names = sorted((path.name for path in folder.iterdir()), reverse=True) if folder.is_dir() else []
    return {Path(name).stem: name for name in names if Path(name).suffix.lower() in PHOTO_SUFFIXES}


def _face(path: Path, image: Path, group: str) -> Face:
    count, numbers = None, list[str]()
    for number, line in enumerate(read_lines(path), start=1):
        text = re.sub(r"[{}]|(//|#).*", " ", line)  # braces may share a line with others
        header = _HEADER.fullmatch(text)
        if header is not None:
            count = header[2] if header[1].lower() == "n_points" else count
        elif words := text.split():
            numbers += words
            if len(words) != 2:
                raise FaceSetError(f"{path}, line {number}: expected x y, found {text.strip()[:40]!r}")
    try:
        landmarks = np.array(numbers, np.float64).reshape(-1, 2)
    except ValueError as error:
        raise FaceSetError(f"{path}: {number_fault(error)}") from error
    if not len(landmarks) or count != str(len(landmarks)):
        said = "no n_points" if count is None else f"n_points says {count}"
        raise FaceSetError(f"{path}: {said}, and there are {len(landmarks)} points; is it cut off, or no .pts file?")
    landmarks, weights = without_unlabelled(landmarks)
    return labelled_face(image, landmarks - 1, str(path), point_weights=weights, group=group)
