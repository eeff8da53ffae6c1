"""One shard: faces and all that is known of them, in a file that numpy alone can read."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError

__all__ = ["Shard", "pack_shard", "read_shard", "sha256_of"]


@dataclass(frozen=True, slots=True)
class Shard:
    """Faces of consecutive photographs.

    Attributes:
        crops: ``(N, S, S, 3)`` uint8 BGR.
        landmarks: ``(N, P, 2)`` float32, pixels of the crop.
        weights: ``(N, P)`` float32, trust in each landmark, 0 to 1.
        attributes: ``(N, 6)`` bool, in the order of `pfld_edge_calib.WFLW_ATTRIBUTES`.
        groups: N names; faces of one share a person or a photograph.
    """

    crops: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    weights: NDArray[np.float32]
    attributes: NDArray[np.bool_]
    groups: tuple[str, ...]


def pack_shard(
    pictures: Sequence[bytes],
    landmarks: NDArray[np.float32],
    weights: NDArray[np.float32],
    attributes: NDArray[np.bool_],
    groups: Sequence[str],
) -> bytes:
    """Put a shard's arrays into one ``.npz`` file; equal faces give equal bytes.

    Args:
        pictures: Each face's JPEG, or its raw pixels.
        landmarks: See `Shard`.
        weights: See `Shard`.
        attributes: See `Shard`.
        groups: See `Shard`.
    """
    names = [group.encode() for group in groups]
    arrays = {
        "pictures": np.frombuffer(b"".join(pictures), np.uint8),
        "picture_ends": np.cumsum([len(picture) for picture in pictures], dtype=np.int64),
        "landmarks": landmarks,
        "weights": weights,
        "attributes": attributes,
        "groups": np.frombuffer(b"".join(names), np.uint8),
        "group_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
    }
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    return packed.getvalue()


def read_shard(path: Path, size: int, *, pictures: bool = True) -> Shard:
    """Read a shard.

    Args:
        path: The file.
        size: Side of its crops, from the manifest.
        pictures: Unpack the crops; where not, there are none.

    Raises:
        FaceSetError: It is missing or damaged.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if pictures or name != "pictures"}
        crops = np.zeros((0, size, size, 3), np.uint8)
        if pictures:
            crops = np.stack([_decoded(each, size) for each in _parts(arrays["pictures"], arrays["picture_ends"])])
        groups = [bytes(name).decode() for name in _parts(arrays["groups"], arrays["group_ends"])]
        shard = Shard(crops, arrays["landmarks"], arrays["weights"], arrays["attributes"].astype(bool), tuple(groups))
    except FileNotFoundError as error:
        raise FaceSetError(f"{path}: the shard is missing; run `pfld-edge prepare` again") from error
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, cv2.error) as error:
        raise FaceSetError(f"{path}: a damaged shard ({error}); delete it and run `pfld-edge prepare` again") from error
    counts = {len(arrays["picture_ends"]), len(shard.landmarks), len(shard.weights), len(shard.attributes), len(groups)}
    if len(counts) > 1:
        raise FaceSetError(f"{path}: a damaged shard (its arrays differ in length); delete it and prepare again")
    return shard


def _parts(flat: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    return np.split(flat, ends[:-1]) if len(ends) else []


def _decoded(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if len(picture) == size * size * 3:
        return picture.reshape(size, size, 3)
    crop = cv2.imdecode(picture, cv2.IMREAD_COLOR)
    if crop is None or crop.shape != (size, size, 3):
        raise ValueError(f"a picture is not {size} x {size}")
    return np.asarray(crop, np.uint8)


def sha256_of(path: Path) -> str:
    """Hash a file, a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
