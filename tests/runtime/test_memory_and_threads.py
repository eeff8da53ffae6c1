"""Many threads and many calls give the same results, keep no memory and copy no frame."""

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pfld_edge_runtime import Contract, FaceLandmarker
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

STATM = Path("/proc/self/statm")


MEGABYTE = 2**20


def call(landmarker: FaceLandmarker, photo: Uint8Array, seed: int) -> Float32Array:
    """Find one to three faces of their own size, so that threads' scratch memory differs from call to call."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(-30, 60, (1 + seed % 3, 2))
    boxes = np.concatenate([corners, corners + rng.integers(5, 90, corners.shape)], axis=1)
    return landmarker(photo if seed % 2 else photo[:, :, 0], boxes, "rgb" if seed % 4 else "bgr")


@pytest.mark.parametrize("threads", [1, 2])
def test_sixteen_threads_get_what_one_gets(photo: Uint8Array, threads: int) -> None:
    landmarker = FaceLandmarker(threads=threads)
    expected = [call(landmarker, photo, seed) for seed in range(160)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda seed: call(landmarker, photo, seed), range(160)))
    for ours, serial in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, serial)


def test_thousands_of_calls_keep_no_python_memory(
    build: Callable[..., Path], contract: Contract, photo: Uint8Array
) -> None:
    landmarker = FaceLandmarker(build(contract))

    def memory_after(seeds: range) -> int:
        for seed in seeds:
            call(landmarker, photo, seed)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        # Traced from the first call on: else the filter taps that the crop remembers of the last boxes count as new.
        kept = -memory_after(range(300)) + memory_after(range(300, 1300))
    finally:
        tracemalloc.stop()
    # A leak of one crop or one result per call would be 0.8 MB or more.
    assert kept < 100_000


# In a process of its own: what other tests freed and an allocator gives back or takes again is no leak of ours.
SCRIPT = """
from pathlib import Path
import numpy as np
from pfld_edge_runtime import FAST_MODEL, FaceLandmarker

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

photo = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
landmarker = FaceLandmarker(FAST_MODEL)

def call(seed):
    corners = np.random.default_rng(seed).integers(-30, 60, (1 + seed % 3, 2))
    landmarker(photo, np.concatenate([corners, corners + 5 + 40 * (seed % 3)], axis=1))

for seed in range(300):
    call(seed)
before = resident()
for seed in range(3000):
    call(seed)
print(resident() - before)
"""


@pytest.mark.skipif(not STATM.is_file(), reason="resident memory is read from /proc/self/statm, which is Linux's")
def test_thousands_of_calls_grow_no_resident_memory() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    # Allocators round; a leak of one 112 x 112 crop per call would be 113 MB.
    assert int(found.stdout) < 4 * MEGABYTE


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
