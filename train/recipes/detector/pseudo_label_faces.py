"""Pseudo-label photographs with SCRFD-2.5G: boxes, scores and five points of every face it finds.

The labels serve three ends in training: points (eyes, mouth centre) for true boxes, ignore regions where a
photograph's true labels miss a face, and whole labels where a photograph has none.

    python pseudo_label_faces.py --detector scrfd_2.5g_kps.onnx --out data/wider.npz FOLDER...

Output arrays, one row a face: ``image`` (path), ``box`` (x0 y0 x1 y1, pixels of that image), ``score`` (0 to 1),
``points`` (5 x 2, pixels: the two eyes, the nose tip, the two mouth corners; image left first).
``photo`` lists every photograph that was looked at, with or without faces.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

Float = NDArray[np.float32]
_STRIDES = (8, 16, 32)


def suppress(boxes: Float, scores: Float, overlap: float) -> NDArray[np.int64]:
    """Indices that greedy non-maximum suppression keeps, best score first."""
    order = np.argsort(-scores)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while order.size:
        first, rest = order[0], order[1:]
        kept.append(first)
        low = np.maximum(boxes[first, :2], boxes[rest, :2])
        high = np.minimum(boxes[first, 2:], boxes[rest, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        order = rest[common / (area[first] + area[rest] - common + 1e-9) <= overlap]
    return np.array(kept, np.int64)


_SIDE = 640


class Scrfd:
    """SCRFD with points (Guo et al., ICLR 2022), input of 640 px that holds ``tiles`` x ``tiles`` photographs."""

    def __init__(self, path: str, tiles: int, threshold: float) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._tiles, self._threshold = tiles, threshold

    def __call__(self, images: list[NDArray[np.uint8]]) -> list[tuple[Float, Float, Float]]:
        """Boxes (N, 4), scores (N,) and points (N, 5, 2) in pixels of each BGR photograph, ``tiles`` ** 2 at most."""
        canvas = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        cell = _SIDE // self._tiles
        for index, image in enumerate(images):
            scale = cell / max(image.shape[:2])
            width, height = round(image.shape[1] * scale), round(image.shape[0] * scale)
            x, y = index % self._tiles * cell, index // self._tiles * cell
            method = cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
            canvas[y : y + height, x : x + width] = cv2.resize(image, (width, height), interpolation=method)
        blob = ((canvas[..., ::-1].astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
        outputs = self._session.run(None, {self._input: np.ascontiguousarray(blob)})
        boxes, scores, points = self._decode([np.asarray(o).reshape(-1, np.shape(o)[-1]) for o in outputs])
        kept = suppress(boxes, scores, 0.45)
        boxes, scores, points = boxes[kept], scores[kept], points[kept]
        tile = np.clip((boxes[:, :2] + boxes[:, 2:]) / 2 // cell, 0, self._tiles - 1).astype(int)
        answers = []
        for index, image in enumerate(images):
            corner = np.array([index % self._tiles, index // self._tiles])
            mine = (tile == corner).all(1)
            scale, moved = cell / max(image.shape[:2]), (corner * cell).astype(np.float32)
            box = (boxes[mine] - np.tile(moved, 2)) / scale
            answers.append((box, scores[mine], (points[mine] - moved) / scale))
        return answers

    def _decode(self, outputs: list[Float]) -> tuple[Float, Float, Float]:
        found: tuple[list[Float], list[Float], list[Float]] = ([], [], [])
        by_kind = {size: sorted((o for o in outputs if o.shape[1] == size), key=len)[::-1] for size in (1, 4, 10)}
        for stride, score, edge, point in zip(_STRIDES, by_kind[1], by_kind[4], by_kind[10], strict=True):
            side = _SIDE // stride
            grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
            centers = np.repeat(grid, len(score) // side**2, axis=0).astype(np.float32)
            rows = score[:, 0] > self._threshold
            center = centers[rows]
            found[0].append(np.concatenate([center - edge[rows, :2], center + edge[rows, 2:]], 1) * stride)
            found[1].append(score[rows, 0])
            found[2].append((center[:, None] + point[rows].reshape(-1, 5, 2)) * stride)
        return np.concatenate(found[0]), np.concatenate(found[1]), np.concatenate(found[2])


def main() -> None:
    """Label every photograph of the given folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", required=True)
    parser.add_argument("--tiles", type=int, default=1, help="tiles a side: 2 shows four small photographs at once")
    parser.add_argument("--threshold", type=float, default=0.2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="take every n-th photograph")
    parser.add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args()
    detect = Scrfd(given.detector, given.tiles, given.threshold)
    found = (path for folder in given.folders for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    photos = sorted(found)[:: given.every]
    rows: dict[str, list[object]] = {"image": [], "box": [], "score": [], "points": []}
    step = given.tiles**2
    for start in range(0, len(photos), step):
        names = photos[start : start + step]
        images = [cv2.imread(str(photo)) for photo in names]
        readable = [np.asarray(image, np.uint8) for image in images if image is not None]
        for photo, answer in zip(names, detect(readable), strict=True):
            for box, score, points in zip(*answer, strict=True):
                for name, value in zip(rows, (str(photo), box, score, points), strict=True):
                    rows[name].append(value)
    partial = given.out.with_suffix(".partial.npz")
    arrays: dict[str, Any] = {name: np.array(values) for name, values in rows.items()}
    np.savez(partial, photo=[str(p) for p in photos], **arrays)
    partial.replace(given.out)
    sys.stdout.write(f"{given.out}: {len(rows['image'])} faces in {len(photos)} photographs\n")


if __name__ == "__main__":
    main()
