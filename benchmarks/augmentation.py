"""Draws what augmentation does to the two bundled portraits.

python benchmarks/augmentation.py docs/augmentation.png
"""

import tempfile
from dataclasses import fields, replace
from pathlib import Path

import click
import cv2
import numpy as np

from pfld_edge_calib import PORTRAITS
from pfld_edge_runtime import Contract
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_train.augment import draw_plan, render_on_cpu
from pfld_edge_train.config import AugmentConfig, TrainConfig
from pfld_edge_train.face_cache import FaceCache, open_cache

OFF = AugmentConfig(**{item.name: 0.0 for item in fields(AugmentConfig)})
SHOWN = {
    "rotation": 25.0,
    "shear": 0.3,
    "shift": 0.08,
    "scale": 0.15,
    "flip": 1.0,
    "light": 0.7,
    "darkness": 1.0,
    "gamma": 0.8,
    "temperature": 0.3,
    "color": 0.3,
    "gray": 1.0,
    "blur": 1.0,
    "defocus": 1.0,
    "low_resolution": 1.0,
    "noise": 30.0,
    "jpeg": 1.0,
    "occlusion": 1.0,
    "mask": 1.0,
    "glasses": 1.0,
}
"""Strengths at which each part is well seen."""
COLUMNS = 6


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Draw every part on a portrait, with the landmarks, into the PNG file OUT."""
    contract = Contract(input_size=80)
    portraits = TrainConfig.from_dict({"data": [{"path": str(PORTRAITS / "landmarks.csv")}]})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        faces = open_cache(portraits, Path(folder), contract)
    cells = [labelled(*face(faces, contract, OFF, 0), "plain")]
    for number, (name, strength) in enumerate(SHOWN.items()):
        config, row = replace(OFF, **{name: strength}), number % 2
        plain = face(faces, contract, OFF, row)[0].astype(int)
        # Some parts spare some faces: of several draws, the one that is seen best.
        draws = [face(faces, contract, config, 2 * seed + row) for seed in range(6)]
        cells.append(labelled(*max(draws, key=lambda draw, plain=plain: np.abs(draw[0] - plain).mean()), name))
    cells += [labelled(*face(faces, contract, AugmentConfig(), seed), "all together") for seed in range(40, 44)]
    rows = [np.hstack(cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)]
    # Four bits a channel are enough to look at, and a third of the file.
    cv2.imwrite(str(out), np.vstack(rows) & 0xF0 | 8, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    click.echo(f"{out}: {out.stat().st_size // 1000} kB")


def face(faces: FaceCache, contract: Contract, config: AugmentConfig, seed: int) -> tuple[Uint8Array, Float32Array]:
    """One augmented face and its landmarks as fractions; even seeds give the first portrait, odd ones the second."""
    row = np.array([seed % 2])
    plan = draw_plan(faces, row, contract, config, np.random.default_rng(seed))
    picture = render_on_cpu(faces.crops, plan, contract.input_size, contract.color_order)[0]
    return picture, plan.landmarks[0]


def labelled(picture: Uint8Array, landmarks: Float32Array, name: str) -> Uint8Array:
    """A face with its landmarks and a line of text below."""
    side = len(picture)
    cell = np.full((side + 14, side + 2, 3), 255, np.uint8)
    cell[:side, :side] = picture
    x, y = (landmarks * side).astype(int).clip(0, side - 1).T
    cell[y, x] = (0, 255, 0)
    cv2.putText(cell, name, (1, side + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    return cell


if __name__ == "__main__":
    main()
