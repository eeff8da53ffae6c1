"""An alarm that rings when somebody's eyes have been closed for long: the runtime, and OpenCV to read the video.

    python examples/drowsiness.py drive.mp4     # or a camera's number instead of the file

A demonstration, not what keeps a driver alive: the bundled network sees closing lids only in part
(docs/reading-landmarks.md); `--model` takes a better one.
"""

import argparse

import cv2
import numpy as np

from pfld_edge_runtime import FaceTracker


def main() -> None:
    """Print when eyes close for long, and when they open again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help="a file, or a camera's number")
    parser.add_argument("--detector", default="bundled", help="bundled, yunet, or the file of a detector")
    parser.add_argument("--model", help="a network of your own instead of the bundled one")
    parser.add_argument("--closed", type=float, default=0.75, help="closed is below this share of the usual openness")
    parser.add_argument("--seconds", type=float, default=1.0, help="closed for so long rings")
    options = parser.parse_args()
    video = cv2.VideoCapture(int(options.video) if options.video.isdigit() else options.video)
    fps = video.get(cv2.CAP_PROP_FPS) or 30.0
    tracker = FaceTracker(options.detector, options.model, fps=fps)
    usual, closed, frame = 0.0, 0, 0
    while (read := video.read())[0]:
        faces = tracker(np.asarray(read[1], np.uint8), color="bgr")
        if len(faces):
            openness = float(faces[0].eye_openness().mean())
            usual = max(openness, usual * 0.999)  # a person's own open eyes are the measure
            was, closed = closed, closed + 1 if openness < options.closed * usual else 0
            if was < options.seconds * fps <= closed:
                print(f"{frame / fps:.1f} s: eyes closed for {options.seconds:g} s")  # noqa: T201
            elif closed == 0 and was >= options.seconds * fps:
                print(f"{frame / fps:.1f} s: eyes open again")  # noqa: T201
        frame += 1


if __name__ == "__main__":
    main()
