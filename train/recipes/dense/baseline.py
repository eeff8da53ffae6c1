"""Figures of today's bundled networks and the references on the held-out faces of the pack."""
import sys
from pathlib import Path
import numpy as np
from pfld_edge_runtime import Contract, FaceLandmarker
from face_batches import Faces, figures, plain_crops
faces = Faces(Path(sys.argv[1]))
crops, true = plain_crops(faces, faces.held_out)
print(len(crops), "held-out faces")
for path in map(Path, sys.argv[2:]):
    try:
        net = FaceLandmarker(path)
    except Exception:
        net = FaceLandmarker(path, contract=Contract())
    print(path.name, {k: round(v, 4) for k, v in figures(net.predict_crops(crops), true).items()})
