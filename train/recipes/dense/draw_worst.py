"""Draws a page of packed faces: the worst-agreed that were kept, and those that were dropped.

    python dense/draw_worst.py DATA PAGE.png [kept|dropped|turned|closed]
"""
import sys
from pathlib import Path

import cv2
import numpy as np

data, target, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
packed = np.load(data / ("dropped.npz" if kind == "dropped" else "faces.npz"))
crops = packed["crops"] if kind == "dropped" else np.load(data / "crops.npy", mmap_mode="r")
points = packed["points"]
order = np.argsort(-(packed["face"] if kind == "dropped" else packed["disagreement"]))
if kind == "turned":
    from face_batches import eye_share
    order = np.argsort(eye_share(points))[::6]
if kind == "dropped":
    order = order[:: max(1, len(order) // 60)]
if kind == "closed":
    from face_batches import openness
    order = np.argsort(openness(points))[::4]
rows = []
for r in range(6):
    row = []
    for i in order[r * 10 : r * 10 + 10]:
        image = cv2.resize(crops[i], (176, 176)).copy()
        for x, y in points[i] * 176 - 0.5:
            cv2.circle(image, (int(round(x)), int(round(y))), 1, (0, 255, 0), -1)
        row.append(image)
    while len(row) < 10:
        row.append(np.zeros((176, 176, 3), np.uint8))
    rows.append(np.concatenate(row, 1))
cv2.imwrite(target, np.concatenate(rows))
