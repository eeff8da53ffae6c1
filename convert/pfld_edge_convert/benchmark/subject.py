"""A file that can be timed: what it is fed, and how many calls a batch takes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_convert.errors import BenchmarkError
from pfld_edge_runtime import Contract, FaceLandmarker, ModelContractError, ModelFileError, fingerprint_image
from pfld_edge_runtime.session import open_session, session_contract

__all__ = ["FRAME", "Feed", "Subject", "open_subject"]

Feed = dict[str, NDArray[Any]]

FRAME = (1080, 1920, 3)
"""The photograph that an end-to-end graph is given."""

_SIDE = 320
"""For free axes that aren't the batch: what small face detectors are commonly fed."""

_SEED = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """An ONNX file to time.

    Attributes:
        name: For tables.
        path: The file.
        contract: What the file says of itself; None where it says nothing.
        shapes: Shape of each input, the batch as None where it is free.
        dtypes: Of each input.
        filled: Free axes besides the batch, and the sizes that were chosen for them.
    """

    name: str
    path: Path
    contract: Contract | None
    shapes: dict[str, tuple[int | None, ...]]
    dtypes: dict[str, np.dtype[Any]]
    filled: dict[str, int]

    @property
    def end_to_end(self) -> bool:
        """Whether it takes a photograph and boxes."""
        return self.contract is not None and self.contract.end_to_end

    def calls(self, batch: int) -> int:
        """Number of calls that a batch takes.

        Raises:
            BenchmarkError: The file takes a fixed number of faces, which doesn't divide the batch.
        """
        fixed = next(iter(self.shapes.values()))[:1]
        if self.end_to_end or fixed in ((), (None,)):
            return 1
        size = fixed[0] or 1
        if batch % size:
            raise BenchmarkError(f"{self.path} takes exactly {size} a call: a batch of {batch} can't be timed")
        return batch // size

    def feed(self, batch: int) -> Feed:
        """Make the inputs of one call of a batch, the same in every run."""
        batch //= self.calls(batch)
        if self.end_to_end:
            return _photo_and_boxes(self.shapes, batch)
        random = np.random.default_rng(_SEED)
        return {
            name: _noise(random, tuple(batch if size is None else size for size in shape), self.dtypes[name])
            for name, shape in self.shapes.items()
        }

    def network_call(self, threads: int, batch: int) -> Callable[[], object]:
        """Open the network as the runtime does, and make a call that runs a batch through it.

        Raises:
            BenchmarkError: It can't run what it is fed.
        """
        session, feed, calls = open_session(self.path, threads=threads), self.feed(batch), range(self.calls(batch))

        def call() -> None:
            for _ in calls:
                session.run(None, feed)

        try:
            call()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise BenchmarkError(f"{self.path} can't run what bench feeds it: {reason}") from error
        return call

    def crops_call(self, threads: int, batch: int) -> Callable[[], object]:
        """Make a call from uint8 crops to landmarks: normalization and network, as the runtime runs them.

        Raises:
            BenchmarkError: The file is an end-to-end graph, which takes no crops, or no landmark network.
        """
        if self.end_to_end:
            raise BenchmarkError(f"{self.path} is an end-to-end graph and takes no crops: leave out --from-crops")
        try:
            landmarker = FaceLandmarker(self.path, threads=threads, contract=None if self.contract else Contract())
        except ModelContractError as error:
            raise BenchmarkError(f"{self.path} can't run on crops: {error}") from error
        crops = np.repeat(fingerprint_image(_SEED, landmarker.contract.input_size)[None], batch, axis=0)
        return lambda: landmarker.predict_crops(crops)


def open_subject(path: Path, sizes: Mapping[str, int] | None = None) -> Subject:
    """Look at a file's inputs.

    Args:
        path: An ONNX file with one input, or an end-to-end graph.
        sizes: Sizes for free axes by name; 320 for others, and the batch for the first.

    Raises:
        ModelFileError: The file is missing or not an ONNX model.
        BenchmarkError: It is a checkpoint, or has several inputs, or one that isn't a tensor of numbers.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    if path.suffix.lower() in (".pth", ".pt"):
        raise BenchmarkError(
            f"{path} is a checkpoint; bench times what devices run: make an ONNX file of it with `pfld-edge convert`"
        )
    session = open_session(path)
    contract, inputs = session_contract(session), session.get_inputs()
    if len(inputs) != 1 and not (contract is not None and contract.end_to_end):
        names = ", ".join(value.name for value in inputs)
        raise BenchmarkError(f"{path} has {len(inputs)} inputs ({names}); bench times networks with one")
    filled: dict[str, int] = {}
    shapes = {value.name: _shape(value, sizes or {}, filled) for value in inputs}
    if len(inputs) > 1:  # an end-to-end graph: the photograph's sides aren't chosen here
        filled.clear()
    return Subject(path.name, path, contract, shapes, {value.name: _dtype(path, value) for value in inputs}, filled)


def _shape(value: onnxruntime.NodeArg, sizes: Mapping[str, int], filled: dict[str, int]) -> tuple[int | None, ...]:
    shape: list[int | None] = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int) and size > 0:
            shape.append(size)
        elif isinstance(size, str) and size in sizes:
            shape.append(sizes[size])
        elif axis == 0:
            shape.append(None)
        else:
            name = size if isinstance(size, str) and size else f"{value.name}[{axis}]"
            filled[name] = sizes.get(name, _SIDE)
            shape.append(filled[name])
    return tuple(shape)


def _dtype(path: Path, value: onnxruntime.NodeArg) -> np.dtype[Any]:
    names = {"float": "float32", "double": "float64"}
    found = re.fullmatch(r"tensor\((float|double|float16|u?int(?:8|16|32|64)|bool)\)", value.type)
    if found is None:
        raise BenchmarkError(f"{path}: bench can't make an input of type {value.type}")
    return np.dtype(names.get(found[1], found[1]))


def _noise(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "f":
        return random.uniform(-1, 1, shape).astype(dtype)
    return random.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)


def _photo_and_boxes(shapes: Mapping[str, tuple[int | None, ...]], faces: int) -> Feed:
    random = np.random.default_rng(_SEED)
    corners = np.stack([random.uniform(0, 1400, faces), random.uniform(0, 600, faces)], axis=1)
    boxes = np.concatenate([corners, corners + 300], axis=1).astype(np.float32)
    values = (random.integers(0, 256, FRAME, np.uint8), boxes)
    return dict(zip(shapes, values, strict=True))
