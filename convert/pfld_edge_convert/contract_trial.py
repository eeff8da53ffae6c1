"""Runs a landmark network under a hypothesis about its contract, and measures how well that explains known faces.

Two measurements judge a hypothesis: the error against the known landmarks, and the equivariance error, the spread of
the landmarks of one face over moved, rotated, scaled and mirrored crops, which needs no labels. Where the order of a
network's points is unknown, their spread and their distance from the corners of the eyes and of the mouth count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import Face, FaceSetError
from pfld_edge_calib.datasets.wflw import points_as_wflw_98
from pfld_edge_calib.photo import face_photo
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.landmark_graph import AXIS_BY_AXIS, HEAT_MAPS, POINT_BY_POINT, SPACES, WITH_DEPTH
from pfld_edge_runtime import IBUG_68, WFLW_98, landmarks_68
from pfld_edge_runtime.arrays import Float64Array, Int64Array, Uint8Array
from pfld_edge_runtime.detection.architectures import YuNet
from pfld_edge_runtime.session import open_session

Triple = tuple[float, float, float]

NORMALIZATIONS: dict[str, tuple[Triple, Triple]] = {
    "0..1": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "-1..1": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "0..255": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and scale in grey levels by name, in RGB order (torchvision's for ``imagenet``).

Mean 127.5 with scale 128 is no hypothesis of its own: it differs from ``-1..1`` by 0.4 %, which no error resolves.
"""

SCHEMES = {98: WFLW_98, 68: IBUG_68}
"""Schemes whose order is tried, by number of points."""

_ANCHORS = {98: (60, 64, 68, 72, 76, 82, 57, 16), 68: (36, 39, 42, 45, 48, 54, 33, 8)}
"""Corners of the eyes and of the mouth, lower end of the nose, chin."""

_NUMBERS = ("tensor(float)", "tensor(float16)", "tensor(double)")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One way to feed a network and to read its output, in the words of `Contract`."""

    layout: str
    color_order: str
    normalization: str  # a key of `NORMALIZATIONS`, or uint8 where the graph takes raw pixels
    box: str  # landmarks-tight, or detector: the box of a face detector, which includes the forehead
    margin: float
    output: int  # index among the network's outputs
    order: str  # one of `ORDERS`
    space: str  # one of `SPACES`
    scheme: str  # wflw-98, ibug-68, the name of the labels' own, or unknown


@dataclass(frozen=True, slots=True)
class Subject:
    """A face: its photograph, box, known landmarks by number of points, and the length that errors are divided by."""

    photo: Uint8Array
    box: Float64Array
    known: dict[int, tuple[Float64Array, Float64Array]]
    unit: float

    @classmethod
    def of(cls, face: Face) -> "Subject":
        """Read a face's photograph, and its 68 points where it has 98, or the reverse.

        FaceSetError where it has no landmarks, or the photograph can't be read.
        """
        if face.landmarks is None:
            raise FaceSetError(f"{face.image}: no landmarks; --find needs faces whose landmarks are known")
        points, count = face.landmarks, len(face.landmarks)
        weights = np.ones(count, np.float32) if face.point_weights is None else face.point_weights
        known = {count: (points.astype(np.float64), weights.astype(np.float64))}
        if count == 98 and weights.all():
            known[68] = (landmarks_68(points)[0].astype(np.float64), np.ones(68))
        elif count == 68:
            wider, mask = points_as_wflw_98(points[None], weights[None])
            known[98] = (wider[0].astype(np.float64), mask[0].astype(np.float64))
        extent = face.bbox_xyxy[2:] - face.bbox_xyxy[:2]
        unit = np.sqrt(extent.prod())
        if count in SCHEMES:
            first, second = SCHEMES[count].normalizing_points
            unit = np.linalg.norm(points[first] - points[second])
        return cls(face_photo(face), face.bbox_xyxy, known, max(float(unit), 1.0))


@dataclass(frozen=True, slots=True)
class Crops:
    """``(F, K, S, S, 3)`` BGR crops, of which every second is mirrored, and the maps from fractions to photographs."""

    images: Uint8Array
    linear: Float64Array
    offset: Float64Array


@dataclass(frozen=True, slots=True)
class Score:
    """Error and equivariance error of each crop, ``(F, K)``, and the mirror permutation and medians of the points."""

    error: Float64Array
    spread: Float64Array
    mirror: Int64Array
    medians: Float64Array


def cut_crops(
    subjects: Sequence[Subject], size: int, margin: float, box: str, count: int, seed: int, stress: float
) -> Crops:
    """Cut `count` crops a face: moved by up to 4 % of the box, rotated by up to 15 degrees, scaled by up to 5 %.

    The crops of a face don't depend on the faces behind it.
    """
    rng = np.random.default_rng(seed)
    images = np.empty((len(subjects), count, size, size, 3), np.uint8)
    linear, offset = np.empty((len(subjects), count, 2, 2)), np.empty((len(subjects), count, 2))
    for row, subject in enumerate(subjects):
        center, extent = (subject.box[:2] + subject.box[2:]) / 2, subject.box[2:] - subject.box[:2]
        if box == "detector":  # The inverse of the map from a detector's box to the landmarks' box.
            extent = extent / YuNet.box_map.scale
            center = center - np.array(YuNet.box_map.shift) * extent
        longer = extent.max()
        for column in range(count):
            angle, zoom = np.deg2rad(rng.uniform(-15, 15)), np.exp(rng.uniform(-0.05, 0.05))
            sine, cosine, sign = np.sin(angle), np.cos(angle), -1 if column % 2 else 1
            matrix = np.array([[cosine * sign, -sine], [sine * sign, cosine]]) * longer * margin * zoom
            corner = center + rng.uniform(-0.04, 0.04, 2) * longer - matrix @ [0.5, 0.5]
            pixels = np.c_[matrix / size, matrix @ [0.5 / size, 0.5 / size] + corner - 0.5]
            crop = cv2.warpAffine(subject.photo, pixels, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
            images[row, column] = _stressed(crop, rng, stress) if stress else crop
            linear[row, column], offset[row, column] = matrix, corner
    return Crops(images, linear, offset)


def _stressed(crop: NDArray[np.generic], rng: np.random.Generator, level: float) -> Uint8Array:
    """Vary saturation, contrast, brightness, sharpness and noise."""
    levels = crop.astype(np.float32)
    grey = levels.mean(axis=-1, keepdims=True)
    levels = grey + (levels - grey) * np.float32(np.exp(rng.uniform(-0.2, 0.7) * level))
    middle = levels.mean()
    levels = middle + (levels - middle) * np.float32(np.exp(rng.uniform(-1.0, 0.4) * level))
    levels = np.clip(levels + np.float32(rng.uniform(-70, 70) * level), 0, 255)
    if rng.random() < 0.5:
        levels = cv2.GaussianBlur(levels, (0, 0), 0.1 + level).astype(np.float32)
    if rng.random() < 0.5:
        levels = levels + rng.normal(0, 8 * level, levels.shape).astype(np.float32)
    return np.asarray(np.clip(levels, 0, 255), np.uint8)


class Network:
    """An ONNX network whose outputs are read under hypotheses."""

    def __init__(self, path: Path, input_size: int | None) -> None:
        self.path, self.session = path, open_session(path)
        inputs = self.session.get_inputs()
        shape = list(inputs[0].shape) if len(inputs) == 1 else []
        if len(shape) != 4:
            raise ConvertError(f"{path.name}: expected one input with four axes, found {[i.shape for i in inputs]}")
        self.layouts = [name for name, axis in (("NCHW", 1), ("NHWC", 3)) if shape[axis] == 3]
        if not self.layouts:
            raise ConvertError(f"{path.name}: no axis of its input {shape} has the three colours")
        if inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
            raise ConvertError(f"{path.name}: its input is {inputs[0].type}; expected float32 or uint8")
        side = shape[2]
        if not isinstance(side, int) and input_size is None:
            raise ConvertError(f"{path.name}: its input size is free; give --input-size")
        self.size = side if isinstance(side, int) else int(input_size or 0)
        self.normalizations = ["uint8"] if inputs[0].type == "tensor(uint8)" else list(NORMALIZATIONS)
        self._name, self._batch = inputs[0].name, shape[0] if isinstance(shape[0], int) else 0
        # Neither texts nor sequences.
        self.names = [output.name for output in self.session.get_outputs() if output.type in _NUMBERS]

    def run(self, crops: Uint8Array, trial: Hypothesis, wanted: Sequence[int] | None) -> dict[int, Float64Array]:
        """Run ``(..., S, S, 3)`` BGR crops, fed as a hypothesis says: the outputs of these indices, all where None.

        Each is ``(N, ...)`` for N crops; outputs of another length are left out.
        """
        images = crops.reshape(-1, *crops.shape[-3:])
        wanted = range(len(self.names)) if wanted is None else wanted
        if not wanted:  # onnxruntime would give all outputs
            return {}
        batch: NDArray[Any] = images[..., ::-1] if trial.color_order == "rgb" else images
        if trial.normalization != "uint8":
            mean, scale = mean_and_scale(trial.normalization, trial.color_order)
            batch = (batch - np.array(mean, np.float32)) / np.array(scale, np.float32)
        batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2) if trial.layout == "NCHW" else batch)
        parts = [batch]
        if self._batch:  # of a fixed batch, the last one is filled up
            filled = np.resize(batch, (-(-len(batch) // self._batch) * self._batch, *batch.shape[1:]))
            parts = np.split(filled, len(filled) // self._batch)
        try:
            outputs = [self.session.run([self.names[i] for i in wanted], {self._name: part}) for part in parts]
            joined = [
                np.concatenate([np.atleast_1d(part) for part in parts])[: len(images)]
                for parts in zip(*outputs, strict=True)
            ]
        except Exception as error:
            raise ConvertError(f"{self.path.name} can't run: {' '.join(str(error).split())[:200]}") from error
        # A wrong normalization may overflow.
        limited = (np.nan_to_num(output.astype(np.float64), nan=1e6).clip(-1e6, 1e6) for output in joined)
        return {i: output for i, output in zip(wanted, limited, strict=True) if len(output) == len(images)}


def mean_and_scale(normalization: str, color_order: str) -> tuple[Triple, Triple]:
    """Give mean and scale in grey levels in the network's channel order; 0 and 1 for ``uint8``."""
    mean, scale = NORMALIZATIONS.get(normalization, NORMALIZATIONS["0..255"])
    return (mean, scale) if color_order == "rgb" else (mean[::-1], scale[::-1])


def _orders(shape: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Ways to read landmarks from one face's output, each with its number of points."""
    size = int(np.prod(shape))
    if len(shape) == 3 and min(shape[1:]) > 4:
        yield HEAT_MAPS, shape[0]
    elif len(shape) <= 3 and size <= 3000:
        if size % 2 == 0 and shape[-1] != 3:
            yield POINT_BY_POINT, size // 2
            yield AXIS_BY_AXIS, size // 2
        if size % 3 == 0:
            yield WITH_DEPTH, size // 3


def _fractions(output: Float64Array, order: str, space: str, size: int) -> Float64Array:
    """Read ``(N, P, 2)`` fractions of the crop from an output ``(N, ...)``."""
    if order == HEAT_MAPS:
        count, points, height, width = output.shape
        row, column = np.divmod(output.reshape(count, points, -1).argmax(axis=2), width)
        return np.stack([(column + 0.5) / width, (row + 0.5) / height], axis=2)
    if order == AXIS_BY_AXIS:
        points = output.reshape(len(output), 2, -1).transpose(0, 2, 1)
    else:
        points = output.reshape(len(output), -1, 3 if order == WITH_DEPTH else 2)[..., :2]
    factor, offset = SPACES[space]
    return np.asarray(points * (factor or 1 / size) + offset)


def readings(network: Network, image: Uint8Array, known: set[int]) -> Iterator[Hypothesis]:
    """List the ways to read a network's outputs, each as a hypothesis about nothing else.

    The network runs on a crop, for some files don't tell the shapes of their outputs; `known` are the numbers of points
    for which the faces have landmarks.
    """
    blank = Hypothesis(network.layouts[0], "bgr", network.normalizations[0], "landmarks-tight", 1.2, 0, "", "", "")
    for index, output in network.run(image, blank, None).items():
        for order, points in _orders(output.shape[1:]):
            if not 5 <= points <= 1000:
                continue
            schemes = [SCHEMES[points].name if points in SCHEMES else f"labels-{points}"] if points in known else []
            # Without the eyes and the mouth nothing says where points of unknown order belong.
            for scheme in [*schemes, *(["unknown"] if known & SCHEMES.keys() else [])]:
                for space in ["0..1"] if order == HEAT_MAPS else SPACES:
                    yield replace(blank, output=index, order=order, space=space, scheme=scheme)


def locate_points(crops: Crops, output: Float64Array, trial: Hypothesis) -> Float64Array:
    """Read ``(F, K, P, 2)`` points in photograph pixels from the output ``(F * K, ...)`` for K crops of F faces."""
    faces, count, size = crops.images.shape[:3]
    read = _fractions(output, trial.order, trial.space, size).reshape(faces, count, -1, 2)
    return np.asarray(read @ crops.linear.swapaxes(2, 3) + crops.offset[:, :, None])


def score(subjects: Sequence[Subject], found: Float64Array, trial: Hypothesis) -> Score:
    """Measure a hypothesis by the ``(F, K, P, 2)`` points that it found in crops of which every second is mirrored."""
    units = np.array([subject.unit for subject in subjects])[:, None]
    named = next((scheme for scheme in SCHEMES.values() if scheme.name == trial.scheme), None)
    mirror = np.array(named.mirror) if named else _mirror(found, units)
    points = found.copy()
    points[:, 1::2] = points[:, 1::2][:, :, mirror]
    medians = np.median(points, axis=1)
    spread = np.linalg.norm(points - medians[:, None], axis=3).mean(axis=2) / units
    if trial.scheme == "unknown":
        return Score((spread + _anchor_error(subjects, points, units)) / 2, spread, mirror, medians)
    known = [subject.known[points.shape[2]] for subject in subjects]
    truth, weights = (np.stack(parts)[:, None] for parts in zip(*known, strict=True))
    distances = np.linalg.norm(points - truth, axis=3)
    return Score((distances * weights).sum(axis=2) / weights.sum(axis=2) / units, spread, mirror, medians)


def _mirror(points: Float64Array, units: Float64Array) -> Int64Array:
    """Find the permutation of mirrored points that brings them nearest to those of the crops that aren't mirrored."""
    from scipy.optimize import linear_sum_assignment

    plain, mirrored = np.median(points[:, ::2], axis=1), np.median(points[:, 1::2], axis=1)
    distances = np.linalg.norm(plain[:, :, None] - mirrored[:, None], axis=3) / units[:, :, None]
    permutation: Int64Array = linear_sum_assignment(distances.mean(axis=0))[1]
    return permutation


def anchor_points(subjects: Sequence[Subject]) -> Float64Array:
    """Corners of eyes and mouth, lower end of the nose, chin, ``(F, 8, 2)``; FaceSetError where faces lack them."""
    for points, indices in _ANCHORS.items():
        if all(points in subject.known for subject in subjects):
            return np.stack([subject.known[points][0][list(indices)] for subject in subjects])
    raise FaceSetError("the faces' landmarks are neither WFLW's 98 nor 300-W's 68, and not as many as the network's")


def _anchor_error(subjects: Sequence[Subject], points: Float64Array, units: Float64Array) -> Float64Array:
    """Distance ``(F, K)`` from each anchor to the point that is nearest to it over all faces, the same in each face."""
    distances = np.linalg.norm(points[:, :, :, None] - anchor_points(subjects)[:, None, None], axis=4)
    nearest = (distances / units[:, :, None, None]).mean(axis=(0, 1)).argmin(axis=0)
    return np.asarray(distances[:, :, nearest, np.arange(len(nearest))].mean(axis=2) / units)
