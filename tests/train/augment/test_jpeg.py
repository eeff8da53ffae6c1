"""JPEG's artefacts are those of libjpeg, without a file."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfld_edge_train.augment.on_device import jpeg_artefacts, quantization_tables

# T.81, figure A.6: the order in which a file stores a block.
ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, i % 8 if (i // 8 + i % 8) % 2 == 0 else i // 8))


def tables_in(data: bytes) -> np.ndarray:
    """Read the two quantization tables out of a JPEG file's DQT segments (T.81, B.2.4.1)."""
    tables = np.zeros((2, 64), int)
    place = 0
    while (place := data.find(b"\xff\xdb", place)) >= 0:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        place += 4
        while place < end:
            tables[data[place] & 15, ZIGZAG] = list(data[place + 1 : place + 65])
            place += 65
    return tables.reshape(2, 8, 8)


def smooth_face(size: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


@given(st.integers(1, 100))
@settings(max_examples=25, deadline=None)
def test_tables_are_those_that_libjpeg_writes(quality: int) -> None:
    _, data = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8), (cv2.IMWRITE_JPEG_QUALITY, quality))
    tables = quantization_tables(torch.tensor([quality]))[0].numpy()
    np.testing.assert_array_equal(tables, tables_in(data.tobytes()))


@pytest.mark.parametrize("size", [112, 100])
@pytest.mark.parametrize("color_order", ["bgr", "rgb"])
def test_artefacts_are_libjpegs(size: int, color_order: str) -> None:
    face = smooth_face(size)
    qualities = (5, 12, 30, 50, 75, 90, 98)
    given_face = face[:, :, ::-1].copy() if color_order == "rgb" else face
    batch = torch.from_numpy(given_face).permute(2, 0, 1).float().expand(len(qualities), -1, -1, -1)
    ours = jpeg_artefacts(batch, torch.tensor(qualities), color_order).permute(0, 2, 3, 1).numpy()
    for quality, restored in zip(qualities, ours, strict=True):
        _, data = cv2.imencode(".jpg", face, (cv2.IMWRITE_JPEG_QUALITY, quality))
        theirs = cv2.imdecode(data, cv2.IMREAD_COLOR).astype(int)
        lost = np.abs(theirs - face).mean()
        difference = np.abs((restored[:, :, ::-1] if color_order == "rgb" else restored) - theirs)
        # Both round; where a coefficient lies between two steps they may take different ones.
        assert difference.mean() < 0.1 * lost + 0.8
        assert np.percentile(difference, 99) <= 16
