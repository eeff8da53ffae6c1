"""Exports averaged weights to ONNX with the product's contract, and measures the NME on the 321 WFLW test faces.

    python dense/evaluate_final.py export RUN/ema.pth OUT.onnx [--int8 DATA] [--relu]   # --relu: clips left out
    python dense/evaluate_final.py measure SHARED FILE.onnx ...                          # once, at the end

`measure` follows the reference's protocol: integer tight box, int(max side * 1.2), zero padding, bilinear, BGR; mean
point error over the distance of points 60 and 72. Nothing may be chosen by its figures.
"""

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from networks import HeatMapNet, Shape

from pfld_edge_runtime import Contract, FaceLandmarker, crop_faces, crop_windows


def network(path: Path, relu: bool = False) -> tuple[HeatMapNet, dict]:
    """The network of a run's averaged weights, in eval mode."""
    record = torch.load(path, map_location="cpu", weights_only=False)
    shape = Shape(**{**record["shape"], "stages": tuple(tuple(s) for s in record["shape"]["stages"])})
    net = HeatMapNet(replace(shape, bound=None) if relu else shape)
    net.load_state_dict(record["weights"], strict=False)
    return net.eval(), record


def folded(net: HeatMapNet) -> HeatMapNet:
    """BatchNorm folded into the convolutions, in place."""
    for module in net.modules():
        if isinstance(module, torch.nn.Sequential) and len(module) == 3 and isinstance(module[1], torch.nn.BatchNorm2d):
            module[0] = torch.nn.utils.fuse_conv_bn_eval(module[0], module[1])
            module[1] = torch.nn.Identity()
    return net


def export(path: Path, target: Path, data: Path | None, relu: bool) -> None:
    """Write TARGET (fp32) with its contract, and TARGET.int8.onnx where calibration faces are given."""
    from pfld_edge_convert.calibration_batches import proof_crops
    from pfld_edge_convert.int8_stage import Int8Request
    from pfld_edge_convert.pipeline import convert

    net, record = network(path, relu)
    contract = Contract()
    request = None
    if data is not None:
        from face_batches import Faces, plain_crops

        faces = Faces(data)
        some = faces.train[:: len(faces.train) // 256][:256]
        request = Int8Request(plain_crops(faces, some)[0], "256 faces of the training pack", allow_slower=True)
    report = convert(folded(net), contract, target, proof_crops(contract), request)
    for file in report.files:
        print(f"{file.path}: {file.size} bytes, {file.macs / 1e6:.1f} M MACs, {file.parameters} parameters, off by {file.max_difference:.2g}")
    if report.int8 is not None:
        print("in float:", report.int8.coverage.floating, " ms:", report.int8.milliseconds)
    print("seen:", record["seen"], "faces")


def test_faces(shared: Path) -> list[tuple[Path, np.ndarray, np.ndarray]]:
    """Photograph, 98 points, six attributes of each of the 321 faces."""
    faces = []
    for name in ("WFLW", "WFLW_more"):
        root = shared / "data" / name
        for line in (root / "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt").read_text().splitlines():
            values = line.split()
            points = np.array(values[:196], np.float64).reshape(98, 2)
            faces.append((root / "WFLW_images" / values[206], points, np.array(values[200:206], int)))
    return faces


def measure(shared: Path, models: list[Path]) -> None:
    from face_batches import openness

    faces = test_faces(shared)
    crops, windows = [], []
    for path, points, _ in faces:
        box = np.concatenate([np.floor(points.min(0)), np.floor(points.max(0)) + 1])
        windows.append(crop_windows(box[None], 1.2))
        crops.append(crop_faces(cv2.imread(str(path)), windows[-1], 112)[0])
    true = np.stack([points for _, points, _ in faces])
    attributes = np.stack([attribute for *_, attribute in faces])
    eyes = np.linalg.norm(true[:, 60] - true[:, 72], axis=1)
    random = np.random.default_rng(0)
    print(f"{len(faces)} faces, {attributes[:, 0].sum()} in large pose")
    for path in models:
        try:
            net = FaceLandmarker(path)
        except Exception:  # noqa: BLE001 - the published files carry no contract
            net = FaceLandmarker(path, contract=Contract())
        fractions = net.predict_crops(np.stack(crops))
        found = np.concatenate([w.to_image(f[None]) for w, f in zip(windows, fractions, strict=True)])
        nme = np.linalg.norm(found - true, axis=2).mean(1) / eyes
        means = nme[random.integers(0, len(nme), (2000, len(nme)))].mean(1)
        turned, straight = attributes[:, 0] == 1, attributes[:, 0] == 0
        low, high = np.quantile(means, (0.025, 0.975))
        r = np.corrcoef(openness(found[straight]), openness(true[straight]))[0, 1]
        closed = openness(true[straight]) <= np.quantile(openness(true[straight]), 0.15)
        print(
            f"{path.name}: NME {nme.mean():.5f} ({low:.4f} to {high:.4f}), large pose {nme[turned].mean():.4f}, openness r {r:.3f}, "
            f"most closed: true {openness(true[straight])[closed].mean():.3f}, found {openness(found[straight])[closed].mean():.3f}"
        )


if __name__ == "__main__":
    if sys.argv[1] == "export":
        rest = sys.argv[4:]
        data = Path(rest[rest.index("--int8") + 1]) if "--int8" in rest else None
        export(Path(sys.argv[2]), Path(sys.argv[3]), data, "--relu" in rest)
    else:
        measure(Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]])
