"""A tiny run: forty-eight pictures of noise with landmarks, and a network of 32 pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pytest
import torch

from pfld_edge_runtime import WFLW_98

FACES = 48

TINY: dict[str, Any] = {
    "model": "pfld-edge-s",
    "width_factor": 0.25,
    "input_size": 32,
    "epochs": 2,
    "batch_size": 8,
    "validation": 0.2,
    "device": "cpu",
}


class WriteConfig(Protocol):
    """Writes a run's TOML beside its faces."""

    def __call__(self, name: str, text: str = "", **changes: object) -> Path: ...


@pytest.fixture(scope="session")
def noise_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``faces.csv``; what is learned from it doesn't matter."""
    folder = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    lines = [",".join(["image", *(f"{axis}{i}" for i in range(98) for axis in "xy")])]
    shape = random.uniform(-1, 1, (98, 2))
    shape = (shape + shape[list(WFLW_98.mirror)] * (-1, 1)) / 2
    shape[60], shape[72] = (-0.6, -0.2), (0.6, -0.2)
    for number in range(FACES):
        cv2.imwrite(str(folder / f"p{number}_0.png"), random.integers(0, 256, (80, 80, 3), np.uint8))
        points = random.uniform(35, 45, 2) + shape * random.uniform(15, 25)
        lines.append(",".join([f"p{number}_0.png", *(f"{value:.2f}" for value in points.ravel())]))
    (folder / "faces.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def write_config(noise_faces: Path) -> WriteConfig:
    def write(name: str, text: str = "", **changes: object) -> Path:
        values = TINY | changes
        lines = [f"{key} = {str(value).lower() if value is True else repr(value)}" for key, value in values.items()]
        path = noise_faces / f"{name}.toml"
        path.write_text("\n".join([*lines, "[[data]]", 'path = "faces.csv"', 'group_by = "person"', text]))
        return path

    return write


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The same sums as in a process with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
