"""A face costs memory of the face's size: no call copies a frame."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pfld_edge_runtime import Contract, FaceLandmarker

FRAME = np.random.default_rng(0).integers(0, 256, (1080, 1920, 4), np.uint8)


@pytest.mark.parametrize(
    "frame",
    [FRAME[:, :, :3].copy(), FRAME, FRAME[:, :, 2::-1], FRAME[::-1], FRAME[:, :, 0], FRAME / np.float32(255)],
    ids=["rgb", "rgba", "bgr view", "upside down", "grey", "floating point"],
)
@pytest.mark.parametrize(
    "box", [[800, 300, 1100, 600], [-900, -900, 3000, 2000]], ids=["300 pixels", "beyond the frame"]
)
def test_no_call_copies_the_frame(
    build: Callable[..., Path], contract: Contract, frame: NDArray[np.generic], box: list[int]
) -> None:
    landmarker = FaceLandmarker(build(contract.replace(input_size=112), size=112))
    tracemalloc.start()
    try:
        landmarker(frame, [box])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # At most two taps for each of the 112 lines of the result; a padded or converted copy would hold all 1080.
    assert peak < frame.nbytes / 2
