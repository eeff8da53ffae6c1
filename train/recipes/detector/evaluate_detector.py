"""Recall and precision of face detectors on the held-out WIDER photographs.

A face counts from 32 px in a photograph of 1024 px (longer sides; 11 px at the 352 px of the shared images), an
intersection over union of 0.4 is a hit. Smaller and invalid faces are ignored: neither missing nor finding them
matters. Detections of all photographs are ranked by score.

    python evaluate_detector.py --wider WIDER --detectors FOLDER [--checkpoint run/last.pt] [--onnx detector.onnx]
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from detector_data import Float, Image, Photo, pairwise_iou, read_wider
from detector_model import MEAN, SCALE, DetectorShape, FaceDetectorNet, cell_grid, decode, flatten_maps
from pseudo_label_faces import suppress

Detect = Callable[[Image], Float]
"""Gives ``(N, 5)``: boxes in pixels of a BGR photograph, and scores."""

LEAST_SHARE = 32 / 1024
_HIT, _NMS = 0.4, 0.45


@dataclass(frozen=True, slots=True)
class Ranking:
    """All detections that matter, best score first.

    Attributes:
        scores: ``(D,)``.
        hits: ``(D,)`` whether the detection found a face that counts.
        faces: How many faces count.
    """

    scores: Float
    hits: NDArray[np.bool_]
    faces: int

    def curve(self) -> tuple[Float, Float]:
        """Recall and precision after each detection."""
        found = np.cumsum(self.hits)
        ranks = np.arange(1, len(found) + 1)
        return (found / self.faces).astype(np.float32), (found / ranks).astype(np.float32)

    def at_precision(self, least: float) -> tuple[float, float]:
        """Largest recall with at least this precision, and the score threshold that gives it."""
        recall, precision = self.curve()
        good = np.flatnonzero(precision >= least)
        return (float(recall[good[-1]]), float(self.scores[good[-1]])) if len(good) else (0.0, 1.0)

    def at_score(self, least: float) -> tuple[float, float]:
        """Recall and precision at a score threshold."""
        count = int((self.scores >= least).sum())
        recall, precision = self.curve()
        return (float(recall[count - 1]), float(precision[count - 1])) if count else (0.0, 1.0)

    def average_precision(self) -> float:
        """Area under precision over recall, all points."""
        recall, precision = self.curve()
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float((np.diff(recall, prepend=0.0) * best).sum())


def rank(detect: Detect, photos: Sequence[Photo]) -> Ranking:
    """Match the detections of all photographs to their faces, each face once, best scores first."""
    scores, hits, faces = [], [], 0
    for photo in photos:
        size = np.sqrt(np.prod(photo.boxes[:, 2:] - photo.boxes[:, :2], 1))
        counts = ~photo.ignored & (size >= LEAST_SHARE * max(photo.image.shape[:2]))
        faces += int(counts.sum())
        found = detect(photo.image)
        found = found[np.argsort(-found[:, 4])]
        iou = pairwise_iou(found[:, :4], photo.boxes)
        free = counts.copy()
        for row, score in zip(iou, found[:, 4], strict=True):
            wanted = np.where(free, row, 0.0)
            best = int(wanted.argmax()) if len(wanted) else -1
            if best >= 0 and wanted[best] >= _HIT:
                free[best] = False
                hits.append(True)
            elif (row[~counts] >= _HIT).any():
                continue
            else:
                hits.append(False)
            scores.append(score)
    order = np.argsort(-np.array(scores), kind="stable")
    return Ranking(np.array(scores, np.float32)[order], np.array(hits, bool)[order], faces)


def letterbox(image: Image, side: int) -> tuple[Image, float]:
    """Shrink or enlarge to a longer side, bilinear, top left on black whose sides are multiples of 32; the scale."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    canvas = np.zeros((-(-height // 32) * 32, -(-width // 32) * 32, 3), np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas, scale


def network_detector(net: FaceDetectorNet, side: int = 320, least_score: float = 0.05) -> Detect:
    """A detector from a network in evaluation mode."""

    @torch.inference_mode()
    def detect(image: Image) -> Float:
        canvas, scale = letterbox(image, side)
        pixels = (torch.from_numpy(canvas).permute(2, 0, 1)[None].float() - MEAN) / SCALE
        cells = flatten_maps(net(pixels))
        boxes, _ = decode(cells, *cell_grid(*canvas.shape[:2]))
        return _kept(boxes[0].numpy(), cells[0, :, 0].sigmoid().numpy(), least_score, scale)

    return detect


def _kept(boxes: Float, scores: Float, least_score: float, scale: float) -> Float:
    good = scores >= least_score
    boxes, scores = boxes[good], scores[good]
    chosen = suppress(boxes, scores, _NMS)
    return np.concatenate([boxes[chosen] / scale, scores[chosen, None]], 1).astype(np.float32)


def onnx_detector(path: Path, side: int = 320, least_score: float = 0.05) -> Detect:
    """A detector from an exported file of this network."""
    from export_detector import OnnxFaces

    faces = OnnxFaces(path, side, least_score)
    return lambda image: np.concatenate(faces(image)[:2], 1)


def read_network(checkpoint: Path) -> FaceDetectorNet:
    """The averaged weights of a checkpoint, in evaluation mode."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    net = FaceDetectorNet(DetectorShape(**state["shape"]))
    net.load_state_dict(state["ema"])
    return net.eval()


def summary(name: str, ranking: Ranking, threshold: float | None = None) -> str:
    """One line: recall at two precisions with the thresholds, AP, and what the usual threshold gives."""
    parts = [f"{name:28s} faces {ranking.faces}  AP {ranking.average_precision():.4f}"]
    for precision in (0.97, 0.98):
        recall, score = ranking.at_precision(precision)
        parts.append(f"recall@p{precision} {recall:.4f} (score {score:.3f})")
    if threshold is not None:
        recall, precision = ranking.at_score(threshold)
        parts.append(f"at {threshold}: {recall:.4f} / {precision:.4f}")
    return "  ".join(parts)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print a line for every detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wider", type=Path, required=True, help="folder with images/ and boxes.csv")
    parser.add_argument("--detectors", type=Path, help="folder with the public detectors' files")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    parser.add_argument("--onnx", type=Path, action="append", default=[])
    parser.add_argument("--side", type=int, default=320)
    given = parser.parse_args()
    torch.set_num_threads(1)
    photos = read_wider(given.wider, None, held_out=True)
    for path in given.checkpoint:
        _print(summary(str(path), rank(network_detector(read_network(path), given.side), photos)))
    for path in given.onnx:
        _print(summary(str(path), rank(onnx_detector(path, given.side), photos)))
    if given.detectors is not None:
        from pfld_edge_runtime.detectors import open_detector

        for name in ("yunet_n_320_320", "version-RFB-320", "scrfd_500m_kps", "scrfd_2.5g_kps"):
            detector = open_detector(given.detectors / f"{name}.onnx", score_threshold=0.05)
            usual = type(detector).score_threshold
            ranking = rank(lambda image, d=detector: d(image, "bgr"), photos)  # type: ignore[misc]
            _print(summary(name, ranking, usual))


if __name__ == "__main__":
    main()
