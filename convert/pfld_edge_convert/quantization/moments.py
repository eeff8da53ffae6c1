"""Second moments of what a layer reads, at a sample of its output positions."""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pfld_edge_convert.passes.graph_index import attribute

__all__ = ["Moments", "patches"]

Array = NDArray[np.float64]
Batch = NDArray[np.float32]


@dataclass(slots=True)
class Moments:
    """Sums over samples of a layer's inputs x, as integers make them, and f, as the float network makes them.

    For a depthwise convolution each array has a leading axis for the channel.

    Attributes:
        count: Samples.
        mean: ``(K,)`` sum of x.
        float_mean: ``(K,)`` sum of f.
        second: ``(K, K)`` sum of x times x.
    """

    count: int = 0
    mean: Array | float = 0.0
    float_mean: Array | float = 0.0
    second: Array | float = 0.0

    def add(self, found: Batch, wanted: Batch) -> None:
        """Add samples ``(..., n, K)`` of x and of f."""
        turned = np.swapaxes(found, -1, -2)
        self.count += found.shape[-2]
        self.mean = self.mean + found.sum(axis=-2, dtype=np.float64)
        self.float_mean = self.float_mean + wanted.sum(axis=-2, dtype=np.float64)
        self.second = self.second + (turned @ found).astype(np.float64)

    def centered(self) -> tuple[Array, Array, Array]:
        """Means of x and of f, and the covariance of x.

        The covariance is shrunk towards its diagonal by ``K / (K + count)``: from fewer samples than columns it would
        promise that some errors never show, which new faces then show.
        """
        mean, wanted = np.asarray(self.mean) / self.count, np.asarray(self.float_mean) / self.count
        second = np.asarray(self.second) / self.count - mean[..., :, None] * mean[..., None, :]
        size = second.shape[-1]
        share = size / (size + self.count)
        return mean, wanted, second * np.where(np.eye(size) > 0, 1.0, 1 - share)


def patches(
    node: onnx.NodeProto, values: Batch, positions: int, random: np.random.Generator, *, depthwise: bool
) -> Batch:
    """Cut what a layer reads for some of its output positions.

    Args:
        node: A Conv or Gemm.
        values: ``(n, C, H, W)`` or ``(n, K)`` input of the node.
        positions: Output positions a face, at random.
        random: Equal generators give equal positions.
        depthwise: Whether the channels are convolved apart.

    Returns:
        ``(samples, K)``, channels fastest; for a depthwise convolution ``(C, samples, kh * kw)``.
    """
    if node.op_type == "Gemm":
        return values
    height, width = attribute(node, "kernel_shape")
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    down, across = attribute(node, "strides", [1, 1])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))[:, :, ::down, ::across]
    count, _, rows, columns = windows.shape[:4]
    chosen = np.stack([random.permutation(rows * columns)[:positions] for _ in range(count)])
    faces = np.repeat(np.arange(count), chosen.shape[1])
    cut = windows[faces, :, chosen.ravel() // columns, chosen.ravel() % columns]
    if depthwise:
        return np.ascontiguousarray(cut.transpose(1, 0, 2, 3)).reshape(cut.shape[1], len(cut), -1)
    return np.ascontiguousarray(cut.transpose(0, 2, 3, 1)).reshape(len(cut), -1)
