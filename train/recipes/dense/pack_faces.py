"""Packs the parts of `label_faces.py` for training; run it again when there are more parts.

    python dense/pack_faces.py DATA

Writes DATA/crops.npy (N, 176, 176, 3) uint8 BGR, DATA/faces.npz (points, trust, held_out, source, group, weight).

- Non-faces, on which the teachers disagree, are left out; large pose, where they disagree more, is kept.
- True 68 points (helen_afw, youtube68) correct the label: their mean offset from the teacher, face by face aligned, is
  a difference of definition and is taken off; the rest moves the 68 points, and their neighbours move along.
- Trust of a point: T / sqrt(T^2 + d^2), d its disagreement and T = 0.03, as in the product's consensus.
- 5 % of the groups (photographs, persons) are held out, by a hash of the name, so that more parts never move a face.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

WORST_FACE, TYPICAL = 0.15, 0.03
LOST_BOX = 0.45
HELD_OUT = 0.05
# How far the true points count against the teacher: the contour's slide along it, eyes and lips don't.
TRUE_SHARE = np.concatenate([np.full(17, 0.3), np.full(10, 0.4), np.full(9, 0.6), np.full(12, 0.8), np.full(20, 0.7)])
FROM_68 = np.array(
    [*range(0, 33, 2), *range(33, 38), *range(42, 47), *range(51, 60)]
    + [60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75, *range(76, 96)]
)
# The other 30 points move as the mean of these neighbours does.
NEIGHBOURS = {
    **{i: (i - 1, i + 1) for i in range(1, 33, 2)},
    38: (37, 36), 39: (36, 35), 40: (35, 34), 41: (34, 33),
    47: (42, 43), 48: (43, 44), 49: (44, 45), 50: (45, 46),
    62: (61, 63), 66: (65, 67), 70: (69, 71), 74: (73, 75),
    96: (60, 61, 63, 64, 65, 67), 97: (68, 69, 71, 72, 73, 75),
}  # fmt: skip


def held_out(group: str) -> bool:
    return int(hashlib.sha1(group.encode()).hexdigest()[:8], 16) / 16**8 < HELD_OUT


def face_size(points: np.ndarray) -> np.ndarray:
    eyes = np.linalg.norm(points[:, 60] - points[:, 72], axis=1)
    return np.maximum(eyes, 0.35 * np.ptp(points, axis=1).max(1))


def corrected(points: np.ndarray, true68: np.ndarray) -> np.ndarray:
    """Teacher's points moved towards the true ones; ``(N, 98, 2)``, ``(N, 68, 2)``."""
    size = face_size(points)[:, None, None]
    eyes = points[:, 72] - points[:, 60]
    eyes = eyes / np.linalg.norm(eyes, axis=1, keepdims=True)
    turn = np.stack([eyes, np.stack([-eyes[:, 1], eyes[:, 0]], 1)], 2)  # columns: the face's own axes
    offset = np.einsum("npi,nij->npj", (true68 - points[:, FROM_68]) / size, turn)
    usable = np.abs(offset).max((1, 2)) < 0.5  # where teacher and annotator speak of one face
    offset = offset - np.median(offset[usable], 0)
    moved = np.zeros_like(points)
    moved[:, FROM_68] = np.einsum("npj,nij->npi", offset * TRUE_SHARE[:, None], turn) * size
    for point, others in NEIGHBOURS.items():
        moved[:, point] = moved[:, others].mean(1)
    return np.where(usable[:, None, None], points + moved, points).astype(np.float32)


def agreement(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of the label's box and the box that it was looked for in."""
    a, b = boxes[:, :4], boxes[:, 4:]
    edge = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).prod(1)
    area = lambda box: (box[:, 2:] - box[:, :2]).prod(1)  # noqa: E731
    return edge / (area(a) + area(b) - edge)


def main() -> None:
    data = Path(sys.argv[1])
    parts = sorted(p for p in (data / "parts").glob("*.npz") if ".partial" not in p.name)
    loaded = [dict(np.load(p)) for p in parts]
    rows = {key: np.concatenate([part[key] for part in loaded]) for key in loaded[0] if key != "crops"}
    face = np.median(rows["disagreement"], 1)
    iou = agreement(rows["boxes"])
    keep = (face < WORST_FACE) & (iou > LOST_BOX)
    source = np.array([group.split("/")[0] for group in rows["groups"]])
    for name in np.unique(source):
        some = source == name
        print(f"{name}: {some.sum()} faces, {keep[some].sum()} kept, median disagreement {np.median(face[some]):.4f}")
    points = rows["points"].copy()
    for name in ("helen_afw", "youtube68"):
        some = source == name
        if some.any():
            points[some] = corrected(points[some], rows["true68"][some])
    trust = TYPICAL / np.hypot(TYPICAL, rows["disagreement"])
    out = np.array([held_out(group) for group in rows["groups"]])
    crops = np.concatenate([part["crops"] for part in loaded])
    arrays = {"points": points, "trust": trust.astype(np.float32), "held_out": out, "source": source,
              "group": rows["groups"], "disagreement": face, "references": rows["references"], "h3r": rows["h3r"]}  # fmt: skip
    save(data / "crops.npy", lambda file: np.save(file, crops[keep]))
    save(data / "faces.npz", lambda file: np.savez(file, **{k: v[keep] for k, v in arrays.items()}))
    np.savez(data / "dropped.npz", crops=crops[~keep], points=points[~keep], face=face[~keep], iou=iou[~keep])
    print(f"{keep.sum()} faces packed, {out[keep].sum()} of them held out")


def save(path: Path, write) -> None:
    """Write whole or not at all; a training that has the old file mapped keeps it."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        write(file)
    partial.replace(path)


if __name__ == "__main__":
    main()
