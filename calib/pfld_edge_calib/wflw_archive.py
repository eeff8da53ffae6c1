"""WFLW as its authors publish it: two archives, whose members are found by name and nothing else is written."""

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.wflw import wflw_list

__all__ = ["ARCHIVES", "photographs_listed", "unpack_wflw", "wflw_archives"]

ARCHIVES = ("WFLW_images.tar.gz", "WFLW_annotations.tar.gz")
"""The official names, of the photographs' archive and of the lists'."""


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
    """Unpack the list of a split and the photographs that it names; what is there already stays.

    A member of an archive is never written where its own name says: it is looked up among the names that are wanted,
    so that no archive can write anywhere else.

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
    wanted = photographs_listed(listed)
    missing = {f"WFLW_images/{photo}": target / "WFLW_images" / photo for photo in wanted}
    missing = {member: path for member, path in missing.items() if not path.is_file()}
    if advance is not None:
        advance(len(wanted) - len(missing))
    _unpack(images, missing, advance)
    lost = next((member for member, path in missing.items() if not path.is_file()), None)
    if lost is not None:
        raise FaceSetError(f"{images}: {lost} is missing in it, which the list names")


def photographs_listed(path: Path) -> list[str]:
    """Names of the photographs in a 207-column list, each once, in their order.

    Raises:
        FaceSetError: A name leads out of the folder.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    names = list(dict.fromkeys(line.split()[-1] for line in lines if line.strip()))
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
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
                if name not in left or not member.isreg():
                    continue
                source = tar.extractfile(member)
                if source is None:
                    continue
                path = wanted[name]
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.partial")
                with partial.open("wb") as file:
                    while block := source.read(1 << 20):
                        file.write(block)
                partial.replace(path)
                left.discard(name)
                if advance is not None:
                    advance(1)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise FaceSetError(f"{archive}: a damaged archive ({error}); download it again") from error
