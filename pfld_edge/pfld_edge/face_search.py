"""Where `pfld-edge predict` looks for faces in a photograph: in given boxes, where a detector says, or all over it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pfld_edge.boxed_network import BoxedNetwork
from pfld_edge_runtime import Faces, landmark_confidence, predict_with_mirror, read_faces

__all__ = ["FaceSearch"]

Photo = NDArray[np.uint8]


@dataclass(frozen=True)
class FaceSearch:
    """How faces are found, and what is asked of them.

    Attributes:
        network: Finds landmarks.
        boxes: Of the faces of a photograph, tight around their landmarks; the whole photograph where there are none.
        analyze: Finds faces by itself (`FaceAnalyzer`), in place of boxes.
        confidence: Fill `Faces.confidences`.
    """

    network: BoxedNetwork
    boxes: Sequence[tuple[float, float, float, float]] = ()
    analyze: Callable[[Photo, str], Faces] | None = None
    confidence: bool = False

    def __call__(self, photo: Photo) -> Faces:
        """Find the faces of a ``(H, W, 3)`` uint8 BGR photograph."""
        if self.analyze is not None:
            return self.rated(self.analyze(photo, "bgr"), photo)
        boxes = self.boxes or ((0, 0, photo.shape[1], photo.shape[0]),)
        return self.rated(read_faces(self.network, photo, boxes, "bgr"), photo)

    def rated(self, faces: Faces, photo: Photo) -> Faces:
        """Add confidences where they are wanted: the network looks again, at the mirror image too."""
        if not self.confidence or len(faces) == 0:
            return faces
        pair = predict_with_mirror(self.network, photo, faces.boxes, "bgr")
        return replace(faces, confidences=landmark_confidence(*pair, faces.scheme))
