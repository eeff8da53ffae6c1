"""A network, checkpoint or ONNX file, that is called as the runtime's `FaceLandmarker` is."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_convert.network import Network
from pfld_edge_runtime import Contract, crop_faces, crop_windows

__all__ = ["BoxedNetwork"]


class BoxedNetwork:
    """Photograph and boxes in, landmarks out, by any network that `open_network` opens."""

    def __init__(self, network: Network) -> None:
        """Take an open network."""
        self._network = network

    @property
    def contract(self) -> Contract:
        """How the network is fed."""
        return self._network.contract

    def __call__(self, image: NDArray[np.generic], boxes: object, color: str = "rgb") -> NDArray[np.float32]:
        """Find landmarks, ``(N, P, 2)`` pixels; arguments and errors as for `FaceLandmarker`."""
        windows = crop_windows(boxes, self.contract.crop.margin)
        swap = color != self.contract.color_order
        crops = crop_faces(image, windows, self.contract.input_size, swap_channels=swap)
        return windows.to_image(self.predict_crops(crops))

    def predict_crops(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network on ``(N, S, S, 3)`` uint8 crops; ``(N, P, 2)`` fractions of the crop."""
        if len(crops) == 0:
            return np.zeros((0, self.contract.landmarks.num_landmarks, 2), np.float32)
        return self._network.predict(crops)
