"""How well head pose and openness are read: against OpenCV's solver, and from predicted landmarks against true ones.

    PFLD_EDGE_SHARED=<folder> python benchmarks/reading.py [--model MODEL.onnx]

On WFLW's 120 test faces. OpenCV solves the same shape and camera from a start of its own; the errors from predicted
landmarks are against the pose that is read from the true ones, since no set at hand has true poses.
"""

from pathlib import Path

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from harness import model_option, shared_folder
from pfld_edge_calib import open_faces, predict_landmarks, read_photo, true_landmarks
from pfld_edge_runtime import FaceLandmarker, default_camera, eye_openness, head_pose, mouth_openness
from pfld_edge_runtime.geometry import FACE_SHAPE, RIGID_POINTS

Array = NDArray[np.float64]
SHAPE = np.array(FACE_SHAPE)
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
STARTS = {"EPnP": cv2.SOLVEPNP_EPNP, "SQPnP": cv2.SOLVEPNP_SQPNP}


@click.command()
@model_option
def main(model: Path | None) -> None:
    """Print the figures of docs/reading-landmarks.md."""
    faces = open_faces(shared_folder() / "data/WFLW").load()
    landmarker = FaceLandmarker(model)
    truth = true_landmarks(faces, landmarker.contract).astype(np.float64)
    found = predict_landmarks(landmarker.model, faces).astype(np.float64)
    sizes = [read_photo(face.image).shape[1::-1] for face in faces]
    against_opencv("true", truth, sizes)
    against_opencv("predicted", found, sizes)
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


def against_opencv(name: str, landmarks: Array, sizes: list[tuple[int, int]]) -> None:
    """Say how far the rotations lie from those of cv2.solvePnP, by its start."""
    apart: dict[str, list[float]] = {"a face ahead": [], **{start: [] for start in STARTS}}
    behind = 0
    for face, size in zip(landmarks, sizes, strict=True):
        points, camera, ours = face[list(RIGID_POINTS)], default_camera(size), head_pose(face, size).rotation[0]
        ahead = np.zeros((3, 1)), np.array([[0.0], [0.0], [1000.0]])
        turn = cv2.solvePnP(SHAPE, points, camera, None, *ahead, True, cv2.SOLVEPNP_ITERATIVE)[1]
        apart["a face ahead"].append(degrees(turn, ours))
        for start, flag in STARTS.items():
            turn, place = cv2.solvePnP(SHAPE, points, camera, None, flags=flag)[1:]
            apart[start].append(degrees(cv2.solvePnPRefineLM(SHAPE, points, camera, None, turn, place)[0], ours))
        behind += int(cv2.solvePnP(SHAPE, points, camera, None, flags=cv2.SOLVEPNP_ITERATIVE)[2][2, 0] < 0)
    for start, values in apart.items():
        click.echo(f"{name} landmarks, OpenCV from {start}: at most {max(values):.3f} degrees apart")
    click.echo(f"{name} landmarks, OpenCV's SOLVEPNP_ITERATIVE without a start: {behind} faces behind the camera")


def degrees(vector: NDArray[np.generic], rotation: Array) -> float:
    """The angle between two rotations."""
    between = cv2.Rodrigues(np.asarray(vector, np.float64))[0].T @ rotation
    return float(np.degrees(np.linalg.norm(cv2.Rodrigues(between)[0])))


if __name__ == "__main__":
    main()
