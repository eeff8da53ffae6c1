"""Annotated faces that can't be measured: their photograph can't be read, or doesn't show them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.photo import face_photo

T = TypeVar("T")


class UnusableFaces:
    """The faces of a set that a run leaves out, by their index in the set.

    Attributes:
        unreadable: Why the photograph can't be read, of each face whose photograph can't be.
        outside: Faces whose boxes lie wholly outside of their photographs.
    """

    def __init__(self, skip: Callable[[FaceSetError], object] | None = None) -> None:
        """Begin with none.

        Args:
            skip: Called with the error for each photograph that can't be read; where None the error is raised.
        """
        self._skip = skip
        self.unreadable: dict[int, str] = {}
        self.outside: set[int] = set()

    def read(self, faces: Sequence[Face], rows: Sequence[int]) -> tuple[NDArray[np.uint8] | None, list[int]]:
        """Read the photograph that some faces share.

        Args:
            faces: The set.
            rows: At least one index, of the faces in the photograph.

        Returns:
            ``(H, W, 3)`` uint8 BGR, and the rows of the faces that it shows; None and no rows where it can't be read.

        Raises:
            FaceSetError: It can't be read, and there is no `skip`.
        """
        try:
            photo = face_photo(faces[rows[0]])
        except FaceSetError as error:
            if self._skip is None:
                raise
            self.unreadable.update(dict.fromkeys(rows, str(error)))
            self._skip(error)
            return None, []
        self.outside.update(row for row in rows if _is_outside(faces[row], photo))
        return photo, [row for row in rows if row not in self.outside]

    def others(self, items: Sequence[T]) -> list[T]:
        """Choose the usable faces, or what is known of them, from a list with one item a face of the set."""
        return [item for row, item in enumerate(items) if row not in self.unreadable and row not in self.outside]


def _is_outside(face: Face, photo: NDArray[np.uint8]) -> bool:
    low, high = face.bbox_xyxy[:2], face.bbox_xyxy[2:]
    # A box without area lies nowhere; cutting it is an error.
    return bool((low < high).all() and ((low >= photo.shape[1::-1]).any() or (high <= 0).any()))
