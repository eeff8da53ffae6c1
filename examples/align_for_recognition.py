"""Cuts every face of photographs as face recognition networks want it: 112 x 112, eyes and mouth in their places.

    python examples/align_for_recognition.py -o aligned photo.jpg more.jpg

ArcFace and its kin are trained on faces laid on five fixed points; the five are read from the 98.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from pfld_edge_runtime import FaceAnalyzer


def main() -> None:
    """Write one PNG a face."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--detector", default="bundled", help="bundled, yunet, or the file of a detector")
    parser.add_argument("-o", "--out", type=Path, default=Path("aligned"))
    options = parser.parse_args()
    analyze = FaceAnalyzer(options.detector)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.photos:
        photo = cv2.imread(str(path))
        if photo is None:
            raise SystemExit(f"{path}: not a photograph that can be read")
        photo = np.asarray(photo, np.uint8)
        for number, face in enumerate(analyze(photo, color="bgr").aligned(photo)):
            cv2.imwrite(str(options.out / f"{path.stem}-{number}.png"), face)


if __name__ == "__main__":
    main()
