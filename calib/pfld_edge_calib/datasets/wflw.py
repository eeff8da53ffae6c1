"""WFLW (Wu et al., "Look at Boundary", CVPR 2018): its folder layout, its lists, and its two official archives."""

import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from pfld_edge_calib.datasets.units import UNIT_FACES, TextUnit, unit_faces
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import LARGEST_COORDINATE, Face, labelled_landmarks
from pfld_edge_calib.files import TextLines, named_file, read_lines, replacing

WFLW_ATTRIBUTES = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")
"""Names of the six attribute columns in file order; the official file calls the first "pose"."""

ARCHIVES = ("WFLW_images.tar.gz", "WFLW_annotations.tar.gz")
"""Official names of the archives of the photographs and of the lists."""

_COLUMNS = 98 * 2 + 4 + 6 + 1
_LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"


def wflw_list(folder: Path, split: str) -> Path:
    """Path of the official list of one split, ``train`` or ``test``."""
    return folder / _LISTS.format(split=split)


def read_wflw(folder: Path, split: str = "test") -> list[Face]:
    """Read one split of a WFLW folder.

    Args:
        folder: Holds ``WFLW_images`` and ``WFLW_annotations``.
        split: ``train`` or ``test``.

    Raises:
        FaceSetError: The folder lacks a part, or a line is damaged.
    """
    images = folder / "WFLW_images"
    if not images.is_dir():
        raise FaceSetError(f"{folder}: not a WFLW folder (WFLW_images is missing)")
    return read_wflw_list(wflw_list(folder, split), images)


def read_wflw_list(path: Path, images: Path) -> list[Face]:
    """Read a 207-column list: 98 x,y pairs, the rectangle, six attributes, the image's name.

    The face's box is the tight box of its landmarks, as in the published evaluation, not the rectangle column.

    Raises:
        FaceSetError: The file is missing, or a line is damaged.
    """
    faces = [face for unit in wflw_units(path, images) for face in unit_faces(unit)]
    if not faces:
        raise FaceSetError(f"{path}: the list is empty")
    return faces


def wflw_units(path: Path, images: Path, size: int = UNIT_FACES) -> Iterator[TextUnit]:
    """Divide a list into units.

    Raises:
        FaceSetError: It is missing.
    """
    if not path.is_file():
        raise FaceSetError(f"{path}: no such WFLW list")
    read = partial(_read_lines, path=path, images=images)
    with path.open("rb") as file:
        lines = TextLines(path, file)
        while True:
            start, line = lines.offset, lines.number + 1
            count = sum(1 for _ in islice(lines, size))
            if not count:
                return
            yield TextUnit(path, start, line, count, read)


def _read_lines(lines: Iterable[str], first: int, count: int, *, path: Path, images: Path) -> Iterator[Face]:
    for number, line in enumerate(islice(lines, count), first):
        if line.strip():
            yield _face(line, images, f"{path}, line {number}")


def _face(line: str, images: Path, where: str) -> Face:
    columns = line.split()
    if len(columns) != _COLUMNS:
        raise FaceSetError(f"{where}: expected {_COLUMNS} columns, found {len(columns)}")
    try:
        landmarks = np.array(columns[:196], np.float64).reshape(98, 2)
        rectangle = np.array(columns[196:200], np.float64)
        flags = [int(float(value)) for value in columns[200:206]]
    except (ValueError, OverflowError) as error:
        raise FaceSetError(f"{where}: {error}") from error
    if not (np.abs(landmarks) < LARGEST_COORDINATE).all():
        raise FaceSetError(f"{where}: a landmark is not a finite number below 1e9")
    attributes = frozenset(name for name, flag in zip(WFLW_ATTRIBUTES, flags, strict=True) if flag)
    known, box = labelled_landmarks(landmarks.astype(np.float32), None, where)
    if (np.maximum(box[:2], rectangle[:2]) > np.minimum(box[2:], rectangle[2:])).any():
        raise FaceSetError(f"{where}: the rectangle and the landmarks don't overlap; do they belong to one photograph?")
    return Face(named_file(images, columns[206]), box, known, attributes, group=columns[206])


def wflw_archives(path: Path) -> tuple[Path, Path] | None:
    """Find the two archives, given one of them or the folder that holds both; None where there is neither.

    Raises:
        FaceSetError: One of them is missing.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name not in ARCHIVES:
        raise FaceSetError(f"{path}: expected a WFLW folder, or one of the official archives {' and '.join(ARCHIVES)}")
    images, annotations = (folder / name for name in ARCHIVES)
    if not images.is_file() and not annotations.is_file():
        return None
    for archive in (images, annotations):
        if not archive.is_file():
            raise FaceSetError(f"{folder}: {archive.name} is missing; both official archives must lie there")
    return images, annotations


def unpack_wflw(
    archives: tuple[Path, Path], target: Path, split: str, advance: Callable[[int], None] | None = None
) -> None:
    """Unpack the list of a split and the photographs that it names; files that exist already are kept.

    Members are looked up among the expected names and written to paths built from those, so that no member can be
    written outside of `target`.

    Args:
        archives: As `wflw_archives` gives them.
        target: Becomes a WFLW folder.
        split: ``train`` or ``test``.
        advance: Called with 1 for each photograph.

    Raises:
        FaceSetError: An archive is damaged, or lacks the list or a photograph.
    """
    images, annotations = archives
    listed = wflw_list(target, split)
    name = PurePosixPath(*listed.relative_to(target).parts)
    _unpack(annotations, {str(name): listed})
    if not listed.is_file():
        raise FaceSetError(f"{annotations}: {name.name} is missing in it")
    wanted = _photographs_listed(listed)
    missing = {f"WFLW_images/{photo}": target / "WFLW_images" / photo for photo in wanted}
    missing = {member: path for member, path in missing.items() if not path.is_file()}
    if advance is not None:
        advance(len(wanted) - len(missing))
    _unpack(images, missing, advance)
    lost = next((member for member, path in missing.items() if not path.is_file()), None)
    if lost is not None:
        raise FaceSetError(f"{images}: {lost} is missing in it, which the list names")


def _photographs_listed(path: Path) -> list[str]:
    """Names of the photographs in a list, each once, in order; refuses a name that leads out of the folder."""
    lines = (line.split() for line in read_lines(path))
    names = list(dict.fromkeys(columns[-1].replace("\\", "/") for columns in lines if columns))
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or ":" in name:
            raise FaceSetError(f"{path}: {name!r} is no name of a photograph inside of WFLW_images")
    return names


def _unpack(archive: Path, wanted: dict[str, Path], advance: Callable[[int], None] | None = None) -> None:
    left = set(wanted)
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if not left:
                    break
                name = str(PurePosixPath(member.name))
                source = tar.extractfile(member) if name in left and member.isreg() else None
                if source is None:
                    continue
                with replacing(wanted[name]) as file:
                    while block := source.read(1 << 20):
                        file.write(block)
                left.discard(name)
                if advance is not None:
                    advance(1)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise FaceSetError(f"{archive}: a damaged archive ({error}); download it again") from error
