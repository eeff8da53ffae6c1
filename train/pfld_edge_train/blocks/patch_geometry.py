"""How a convolution with "same" padding steps over its input."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["PatchGeometry", "images_at_once"]

_CHUNK_VALUES = 1 << 20
"""Values of a chunk: 4 MB in float32, so that what is done to it happens in a processor's cache."""


@dataclass(frozen=True, slots=True)
class PatchGeometry:
    """Patches of ``kernel_size`` squared, over an input padded with ``kernel_size // 2`` zeros on each side.

    Attributes:
        kernel_size: Odd side of the kernel.
        stride: Step of the kernel.
        groups: Of the convolution.
    """

    kernel_size: int
    stride: int
    groups: int

    @property
    def padding(self) -> int:
        """Zeros on each side."""
        return self.kernel_size // 2

    def places(self, x: Tensor) -> int:
        """Patches of a batch ``(N, C, H, W)``."""
        height, width = (-(-side // self.stride) for side in x.shape[2:])
        return x.shape[0] * height * width


def images_at_once(x: Tensor, copies: float = 1) -> int:
    """Say how many images make a chunk; memory traffic is what costs, so a chunk fits into the cache.

    Args:
        x: ``(N, C, H, W)``.
        copies: Of the image's values that are alive at once.
    """
    if not x.is_cpu:
        return max(1, len(x))
    return max(1, int(_CHUNK_VALUES / max(1, copies * x[0].numel())))
