"""Write a trained detector as ONNX (fp32, batch normalisation folded), and read such a file with numpy alone.

    python export_detector.py --checkpoint run/best.pt --out detector.onnx

Input ``image``: ``(1, 3, H, W)`` float32, BGR ``(p - 128) / 128``, H and W free multiples of 32. Outputs ``stride8``,
``stride16``, ``stride32``: the raw maps ``(1, 11, H / s, W / s)`` that `detector_model` describes. The last 1x1
convolutions should stay fp32 in an INT8 file: one scale for scores, log sizes and points would cost accuracy, and they
are 0.5 % of the work.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pseudo_label_faces import suppress

if TYPE_CHECKING:
    from detector_model import FaceDetectorNet

Float = NDArray[np.float32]
_STRIDES = (8, 16, 32)
_MEAN, _SCALE, _NMS = np.float32(128.0), np.float32(128.0), 0.45
OUTPUTS = [f"stride{stride}" for stride in _STRIDES]


def decode_maps(maps: list[Float], least_score: float) -> tuple[Float, Float, Float]:
    """Candidates before suppression: boxes ``(N, 4)``, scores ``(N,)``, points ``(N, 3, 2)`` in input pixels.

    Only cells above the threshold are decoded: the comparison is made on logits, so no map is ever exponentiated.
    """
    least_logit = np.log(least_score / (1 - least_score))
    found: tuple[list[Float], list[Float], list[Float]] = ([], [], [])
    for stride, cells in zip(_STRIDES, maps, strict=True):
        rows, columns = np.nonzero(cells[0, 0] >= least_logit)
        values = cells[0][:, rows, columns].T
        center = np.stack([columns, rows], 1).astype(np.float32) + np.float32(0.5)
        middle, half = center + values[:, 1:3], np.exp(values[:, 3:5]) / 2
        found[0].append(np.concatenate([middle - half, middle + half], 1) * stride)
        found[1].append(1 / (1 + np.exp(-values[:, 0])))
        found[2].append((center[:, None] + values[:, 5:].reshape(-1, 3, 2)) * stride)
    boxes, scores, points = (np.concatenate(part) for part in found)
    return boxes, scores, points


class OnnxFaces:
    """Finds faces with an exported file: letterbox to a longer side of ``side``, network, decoding, suppression."""

    def __init__(self, path: Path, side: int = 320, least_score: float = 0.05) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._side, self._least_score = side, least_score

    def __call__(self, image: NDArray[np.uint8]) -> tuple[Float, Float, Float]:
        """Boxes ``(N, 4)``, scores ``(N, 1)`` and points ``(N, 3, 2)`` in pixels of a BGR photograph, best first."""
        from evaluate_detector import letterbox

        canvas, scale = letterbox(image, self._side)
        pixels = (canvas.transpose(2, 0, 1)[None] - _MEAN) / _SCALE
        maps = self._session.run(OUTPUTS, {self._session.get_inputs()[0].name: np.ascontiguousarray(pixels)})
        boxes, scores, points = decode_maps([np.asarray(m, np.float32) for m in maps], self._least_score)
        kept = suppress(boxes, scores, _NMS)
        return boxes[kept] / scale, scores[kept, None], points[kept] / scale


def export(net: "FaceDetectorNet", path: Path) -> None:
    """Write a network as ONNX with free height and width; the file appears whole or not at all."""
    import torch

    from detector_model import fold_batch_norm

    partial = path.with_suffix(".partial.onnx")
    sizes = {0: "height", 1: "width"}
    axes = {"image": {2: "height", 3: "width"}}
    axes |= {name: {axis + 2: f"{size}_{name}" for axis, size in sizes.items()} for name in OUTPUTS}
    torch.onnx.export(
        fold_batch_norm(net),
        (torch.zeros(1, 3, 320, 320),),
        str(partial),
        input_names=["image"],
        output_names=OUTPUTS,
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    partial.replace(path)


def _check(net: "FaceDetectorNet", path: Path) -> float:
    """Largest difference of the file from the network on one random input that is not square."""
    import torch

    pixels = np.random.default_rng(0).standard_normal((1, 3, 192, 320)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        wanted = net.eval()(torch.from_numpy(pixels))
    found = session.run(OUTPUTS, {"image": pixels})
    return max(float(np.abs(np.asarray(f) - w.numpy()).max()) for f, w in zip(found, wanted, strict=True))


def main() -> None:
    """Export a checkpoint and compare the file with it."""
    from evaluate_detector import read_network

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    net = read_network(given.checkpoint)
    export(net, given.out)
    sys.stdout.write(f"{given.out}: largest difference from the checkpoint {_check(net, given.out):.2e}\n")


if __name__ == "__main__":
    main()
