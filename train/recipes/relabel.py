"""Gives turned faces the labels of the teachers, who know where WFLW's annotators put what can't be seen.

    python train/recipes/relabel.py SHARED runs/turned

Reads FOLDER/turned.csv of `turn_faces.py` and writes FOLDER/labelled.csv. Geometry places a hidden cheek behind the
face; in WFLW it runs along the face's visible outline. Where eyes come closer than a third of the box, turned points
lie 0.2 to 0.45 of the eyes' distance from what the teachers say, and the pictures side with the teachers.
"""

import csv
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from pseudo_label import label_face, start, tight_box
from rich.progress import track


def label(task: tuple[Path, list[str]]) -> list[str] | None:
    """Label one face anew; None where the teachers disagree."""
    folder, row = task
    image = cv2.imread(str(folder / row[0]))
    if image is None:
        return None
    points = np.array(row[1:197], np.float32).reshape(98, 2)
    found = label_face(np.asarray(image, np.uint8), tight_box(points), easy=True)
    return None if found is None else [row[0], *found]


def main() -> None:
    """Label every turned face."""
    shared, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    with (folder / "turned.csv").open() as file:
        header, *rows = csv.reader(file)
    partial = folder / "labelled.partial"
    with partial.open("w", newline="") as file, ProcessPoolExecutor(2, initializer=start, initargs=(shared,)) as pool:
        writer = csv.writer(file)
        writer.writerow(header)
        found = pool.map(label, [(folder, row) for row in rows], chunksize=16)
        for row in track(found, description="labelling", total=len(rows)):
            if row is not None:
                writer.writerow(row)
    partial.replace(folder / "labelled.csv")


if __name__ == "__main__":
    main()
