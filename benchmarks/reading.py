"""How well head pose and openness are read from predicted landmarks, against true ones.

    PFLD_EDGE_SHARED=<folder> python benchmarks/reading.py [--model MODEL.onnx]

On WFLW's 120 test faces. Errors of the pose are against the one read from the true landmarks, since no set at hand has
true poses.
"""

from pathlib import Path

import click
import numpy as np

from harness import model_option, shared_folder
from pfld_edge_calib import open_faces, predict_landmarks, read_photo, true_landmarks
from pfld_edge_runtime import FaceLandmarker, eye_openness, head_pose, mouth_openness

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)


@click.command()
@model_option
def main(model: Path | None) -> None:
    """Print the figures of docs/reading-landmarks.md."""
    faces = open_faces(shared_folder() / "data/WFLW").load()
    landmarker = FaceLandmarker(model)
    truth = true_landmarks(faces, landmarker.contract).astype(np.float64)
    found = predict_landmarks(landmarker.model, faces).astype(np.float64)
    sizes = [read_photo(face.image).shape[1::-1] for face in faces]
    poses = []
    for landmarks in (truth, found):
        each = [head_pose(face, size) for face, size in zip(landmarks, sizes, strict=True)]
        poses.append(np.array([[pose.yaw[0], pose.pitch[0], pose.roll[0]] for pose in each]))
    for axis, column in zip(("yaw", "pitch", "roll"), np.abs(poses[1] - poses[0]).T, strict=True):
        click.echo(
            f"{axis} from predicted landmarks: median error {np.median(column):.1f}, mean {column.mean():.1f}, "
            f"90 % under {np.quantile(column, 0.9):.1f} degrees"
        )
    for name, measure in {"eyes": eye_openness, "mouth": mouth_openness}.items():
        pair = [measure(part).ravel() for part in (truth, found)]
        quantiles = [np.round(np.quantile(values, QUANTILES), 2).tolist() for values in pair]
        click.echo(
            f"{name}: true quantiles {QUANTILES} {quantiles[0]}, predicted {quantiles[1]}, mean error "
            f"{np.abs(pair[1] - pair[0]).mean():.3f}, correlation {np.corrcoef(pair[0], pair[1])[0, 1]:.2f}"
        )


if __name__ == "__main__":
    main()
