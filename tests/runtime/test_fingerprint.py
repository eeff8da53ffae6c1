"""The self-test image is the same in every language."""

import numpy as np
import pytest

from pfld_edge_runtime import fingerprint_image


def mosaic(seed: int, size: int) -> list[list[list[int]]]:
    """The image by Numerical Recipes' generator, in plain integers."""
    state, values = seed, []
    for _ in range(14 * 14 * 3):
        state = (1664525 * state + 1013904223) % 2**32
        values.append(state >> 24)
    tiles = [[values[3 * (14 * row + column) :][:3] for column in range(14)] for row in range(14)]
    return [[tiles[y * 14 // size][x * 14 // size] for x in range(size)] for y in range(size)]


@pytest.mark.parametrize("seed", [0, 1, 20260101, 2**32 - 1])
@pytest.mark.parametrize("size", [16, 112, 113])
def test_the_image_follows_the_plain_generator(seed: int, size: int) -> None:
    image = fingerprint_image(seed, size)
    assert image.dtype == np.uint8
    assert image.tolist() == mosaic(seed, size)
