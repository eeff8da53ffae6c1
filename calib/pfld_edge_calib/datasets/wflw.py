"""WFLW (Wu et al., "Look at Boundary", CVPR 2018): its folder layout, its lists, and its two official archives.

Also what of its 98 points 300-W's 68 tell. A part that is missing or damaged is a FaceSetError.
"""

import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import UNIT_FACES, Face, Unit, labelled_face, text_units, unit_faces
from pfld_edge_calib.files import TextLines, named_file, number_fault, read_lines, replacing
from pfld_edge_runtime import IBUG_68, WFLW_98
from pfld_edge_runtime.arrays import Float32Array
from pfld_edge_runtime.geometry.wflw_points import NEAREST_68

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
    """Read one split, ``train`` or ``test``, of a folder that holds ``WFLW_images`` and ``WFLW_annotations``."""
    faces = [face for unit in wflw_units(folder, split) for face in unit_faces(unit)]
    if not faces:
        raise FaceSetError(f"{wflw_list(folder, split)}: the list is empty")
    return faces


def wflw_units(folder: Path, split: str, size: int = UNIT_FACES) -> Iterator[Unit]:
    """Divide one split of a WFLW folder into units of at most `size` lines.

    A line has 207 columns: 98 x,y pairs, the rectangle, six attributes, the image's name. The face's box is the tight
    box of its landmarks, as in the published evaluation, not the rectangle.
    """
    path, images = wflw_list(folder, split), folder / "WFLW_images"
    if not path.is_file():
        raise FaceSetError(f"{path}: no such WFLW list, the official one of the {split} split")
    if not images.is_dir():
        raise FaceSetError(f"{folder}: not a WFLW folder (WFLW_images is missing)")
    with path.open("rb") as file:
        lines = TextLines(path, file)
        yield from text_units(path, lines, lines, partial(_read_lines, path=path, images=images), size)


def _read_lines(lines: Iterable[str], first: int, count: int, *, path: Path, images: Path) -> Iterator[Face]:
    for number, line in enumerate(islice(lines, count), first):
        if line.strip():
            yield _face(line, images, f"{path}, line {number}")


def _face(line: str, images: Path, where: str) -> Face:
    columns = line.split(maxsplit=_COLUMNS - 1)  # the photograph's name, the last, may hold blanks
    if len(columns) != _COLUMNS:
        raise FaceSetError(
            f"{where}: expected {_COLUMNS} columns, found {len(columns)}: 98 pairs x y, the rectangle, six attributes "
            "and the photograph's name, with blanks between"
        )
    try:
        landmarks = np.array(columns[:196], np.float64).reshape(98, 2)
        rectangle = np.array(columns[196:200], np.float64)
        flags = [int(float(value)) for value in columns[200:206]]
    except (ValueError, OverflowError) as error:
        raise FaceSetError(f"{where}: {number_fault(error)}") from error
    attributes = frozenset(name for name, flag in zip(WFLW_ATTRIBUTES, flags, strict=True) if flag)
    name = columns[206].rstrip()
    face = labelled_face(named_file(images, name), landmarks, where, attributes=attributes, group=name)
    if (np.maximum(face.bbox_xyxy[:2], rectangle[:2]) > np.minimum(face.bbox_xyxy[2:], rectangle[2:])).any():
        raise FaceSetError(f"{where}: the rectangle and the landmarks don't overlap; do they belong to one photograph?")
    return face


def wflw_archives(path: Path) -> tuple[Path, Path] | None:
    """Find the two archives, given one of them or the folder that holds both; None where there is neither."""
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
    archives: tuple[Path, Path], target: Path, split: str, advance: Callable[[int], None] = lambda _count: None
) -> None:
    """Unpack the list of a split and the photographs that it names; files that exist already are kept.

    Members of the `archives` from `wflw_archives` are looked up among the expected names and written to paths built
    from those, so that none can be written outside of `target`. `advance` gets the number of photographs done.
    """
    images, annotations = archives
    listed = wflw_list(target, split)
    _unpack(annotations, {listed.relative_to(target).as_posix(): listed})
    if not listed.is_file():
        raise FaceSetError(f"{annotations}: {listed.name} is missing in it")
    photographs = {f"WFLW_images/{photo}": target / "WFLW_images" / photo for photo in _photographs_listed(listed)}
    missing = {member: path for member, path in photographs.items() if not path.is_file()}
    advance(len(photographs) - len(missing))
    _unpack(images, missing, advance)
    lost = next((member for member, path in missing.items() if not path.is_file()), None)
    if lost is not None:
        raise FaceSetError(f"{images}: {lost} is missing in it, which the list names")


def _photographs_listed(path: Path) -> list[str]:
    """Names of the photographs in a list, each once, in order; refuses a name that leads out of the folder."""
    lines = (line.split(maxsplit=_COLUMNS - 1) for line in read_lines(path))
    names = list(dict.fromkeys(columns[-1].rstrip().replace("\\", "/") for columns in lines if columns))
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts or ":" in name:
            raise FaceSetError(f"{path}: {name!r} is no name of a photograph inside of WFLW_images")
    return names


def _unpack(archive: Path, wanted: dict[str, Path], advance: Callable[[int], None] = lambda _count: None) -> None:
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
                    shutil.copyfileobj(source, file, 1 << 20)
                left.discard(name)
                advance(1)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise FaceSetError(f"{archive}: a damaged archive ({error}); download it again") from error


# 300-W divides a lid into three parts, WFLW into four: WFLW's outer points lie three quarters of the way from the
# corner to 300-W's first point. The lid's middle has no counterpart.
_CORNERS = {37: 36, 38: 39, 40: 39, 41: 36, 43: 42, 44: 45, 46: 45, 47: 42}
"""300-W's corner of the eye beside each of its lid points."""


def wflw_98_from_68() -> tuple[Float32Array, Float32Array]:
    """Build the ``(98, 68)`` float32 map, whose rows sum to 1 where a point has a counterpart, and their mask."""
    matrix = np.zeros((WFLW_98.num_landmarks, IBUG_68.num_landmarks), np.float32)
    matrix[NEAREST_68, range(IBUG_68.num_landmarks)] = 1
    for lid, corner in _CORNERS.items():
        matrix[NEAREST_68[lid], [corner, lid]] = 0.25, 0.75
    return matrix, np.asarray(matrix.any(axis=1), np.float32)


def points_as_wflw_98(landmarks: Float32Array, weights: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Map ``(N, 68, 2)`` points and their ``(N, 68)`` weights to ``(N, 98, 2)`` and ``(N, 98)``.

    Points without counterpart lie at the mean of the 68 and have the weight 0.
    """
    matrix, mask = wflw_98_from_68()
    wider = np.matmul(matrix, landmarks).astype(np.float32)
    wider[:, mask == 0] = landmarks.mean(axis=1, keepdims=True)
    # A point interpolated between two gets the lower of their weights.
    mapped = np.where(matrix > 0, weights[:, None], 1).min(axis=2) * mask
    return wider, mapped.astype(np.float32)
