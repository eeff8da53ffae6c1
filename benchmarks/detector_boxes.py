"""How detectors' boxes lie around landmarks, and what that does to accuracy.

    PFLD_EDGE_SHARED=<folder> python benchmarks/detector_boxes.py --teacher NETWORK.onnx --model NETWORK.onnx > table.md

First the maps from each detector's boxes to landmark boxes, fitted on WFLW's unlabelled photographs: the landmarks are
the teacher's, looked for again in their own tight box. Then NME on the faces of WFLW's test list, which no map has
seen: cut by the true box, by the detector's box as it is, by the mapped box, and by the landmarks found in that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np

from harness import print_table, shared_folder
from pfld_edge_calib import Face, nme_per_face, predict_landmarks, read_photo, read_wflw, refined, true_landmarks
from pfld_edge_calib.find_landmarks import SAME_FACE, find_landmarks, overlaps
from pfld_edge_runtime import BUNDLED_MODEL, BoxMap, FaceDetector, LandmarkModel, open_detector
from pfld_edge_runtime.arrays import Float32Array, Float64Array
from pfld_edge_runtime.geometry.landmarks import tight_box

Found = Mapping[str, list[Float32Array]]
"""Detections of every photograph, by detector."""

FILES = {
    "bundled": "",
    "YuNet": "yunet_n_dynamic.onnx",
    "YuNet 320": "yunet_n_320_320.onnx",
    "SCRFD 500M": "scrfd_500m_kps.onnx",
    "SCRFD 2.5G": "scrfd_2.5g_kps.onnx",
    "UltraFace": "version-RFB-320.onnx",
}
SMALLEST = 40
"""Side in pixels under which a face's landmarks are too uncertain to fit on."""
SHIFTS = (-0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3)
SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6)


@click.command()
@click.option("--teacher", type=click.Path(path_type=Path), help="Network whose landmarks the maps are fitted on.")
@click.option("--model", "models", multiple=True, type=click.Path(path_type=Path), help="Measured besides the bundled.")
@click.option("--every", default=1, show_default=True, help="Fit on every so many-th photograph.")
def main(teacher: Path | None, models: tuple[Path, ...], every: int) -> None:
    """Print the maps and the tables in Markdown."""
    shared = shared_folder()
    wflw = shared / "data/WFLW"
    detectors = {
        name: open_detector(shared / "models/detectors" / file if file else None) for name, file in FILES.items()
    }
    if every > 0:
        names = (wflw / "unlabelled_images.txt").read_text(encoding="utf-8").split()[::every]
        paths = [wflw / "WFLW_images" / name for name in names]
        print_maps(detectors, paths, LandmarkModel.open(teacher or BUNDLED_MODEL))
    faces = read_wflw(wflw)
    photos = [read_photo(face.image) for face in faces]
    found = {name: [detector(photo, "bgr") for photo in photos] for name, detector in detectors.items()}
    for path in (BUNDLED_MODEL, *models):
        model = LandmarkModel.open(path)
        print_accuracy(model, faces, detectors, found)
        print_curves(model, faces)


def print_maps(detectors: Mapping[str, FaceDetector], photos: Sequence[Path], teacher: LandmarkModel) -> None:
    """Fit and print the map of every detector."""
    click.echo(f"### Maps, fitted on {len(photos)} unlabelled photographs")
    rows = []
    for name, detector in detectors.items():
        faces: list[Face] = []
        for path in photos:
            boxes = detector(read_photo(path), "bgr")[:, :4].astype(np.float64)
            large = boxes[(boxes[:, 2:] - boxes[:, :2]).max(axis=1) >= SMALLEST]
            # The group tells afterwards which face came from which box.
            faces += [Face(path, box, group=str(len(faces) + index)) for index, box in enumerate(large)]
        offsets = fitted_offsets(faces, BoxMap(), teacher)
        # Once more from boxes that are nearly right, which the teacher was trained on.
        x, y, width, height = np.median(offsets, axis=0).tolist()
        offsets = fitted_offsets(faces, BoxMap((x, y), (width, height)), teacher)
        low, middle, high = np.percentile(offsets, (25, 50, 75), axis=0)
        spreads = [f"{a:+.3f}..{b:+.3f}" for a, b in zip(low, high, strict=True)]
        rows.append([name, str(len(offsets)), *(f"{value:.3f}" for value in middle), *spreads])
    kinds = ("shift x", "shift y", "scale w", "scale h")
    print_table(["", "faces", *kinds, *(f"middle half of {kind}" for kind in kinds)], rows)


def fitted_offsets(faces: Sequence[Face], start: BoxMap, teacher: LandmarkModel) -> Float64Array:
    """How the landmark box of each face lies in its detector's box: ``(N, 4)`` shift x, y and scale w, h."""
    mapped = [replace(face, bbox_xyxy=start(face.bbox_xyxy[None])[0]) for face in faces]
    once = refined(mapped, teacher, passes=2)
    again = predict_landmarks(teacher, once)
    boxes = np.stack([face.bbox_xyxy for face in once])
    raw = np.stack([faces[int(face.group)].bbox_xyxy for face in once])
    # Where the landmarks still wander, or left the face, the teacher doesn't know.
    sure = (overlaps(boxes, tight_box(again)) > 0.85) & (overlaps(boxes, raw) > SAME_FACE)
    boxes, raw = boxes[sure], raw[sure]
    sizes = raw[:, 2:] - raw[:, :2]
    shifts = (boxes[:, :2] + boxes[:, 2:] - raw[:, :2] - raw[:, 2:]) / 2 / sizes
    return np.concatenate([shifts, (boxes[:, 2:] - boxes[:, :2]) / sizes], axis=1)


def print_accuracy(
    model: LandmarkModel, faces: Sequence[Face], detectors: Mapping[str, FaceDetector], found: Found
) -> None:
    """Print the NME of one network for every way to cut the faces."""
    boxes = {key: matching(faces, found[key], detector.box_map) for key, detector in detectors.items()}
    everywhere = np.all([np.isfinite(box[:, 0]) for box in boxes.values()], axis=0)
    nme = partial(nmes, model, faces)
    whole = nme(np.stack([face.bbox_xyxy for face in faces]))
    click.echo(f"\n### {model.name}: NME on {len(faces)} test faces\n")
    click.echo(
        f"True boxes: {np.nanmean(whole):.4f}; on the {everywhere.sum()} faces that all detectors find "
        f"{whole[everywhere].mean():.4f}. The table is about those faces; in brackets all that the detector finds.\n"
    )
    margin = model.contract.crop.margin
    bare, plain = BoxMap(scale=(1 / margin, 1 / margin)), BoxMap()
    rows = []
    for key, own in boxes.items():
        mapped = detectors[key].box_map
        ways = [nme(bare(own)), nme(plain(own)), nme(mapped(own)), nme(mapped(own), refine=1)]
        cells = [f"{way[everywhere].mean():.4f} ({np.nanmean(way):.4f})" for way in ways]
        rows.append([key, str(np.isnan(own[:, 0]).sum()), *cells])
    print_table(["", "misses", "its box x 1.0", f"its box x {margin}", "mapped", "mapped, refine=1"], rows)


def matching(faces: Sequence[Face], found: Sequence[Float32Array], box_map: BoxMap) -> Float64Array:
    """The detection that is each face, ``(N, 4)`` unmapped; NaN where there is none."""
    result = np.full((len(faces), 4), np.nan)
    for row, face, detections in zip(result, faces, found, strict=True):
        boxes = detections[:, :4].astype(np.float64)
        if len(boxes):
            shared = overlaps(box_map(boxes), face.bbox_xyxy)
            if shared.max() > SAME_FACE:
                row[:] = boxes[shared.argmax()]
    return result


def nmes(model: LandmarkModel, faces: Sequence[Face], boxes: Float64Array, refine: int = 0) -> Float64Array:
    """NME of each face by some boxes; NaN where there is no box."""
    boxed = [replace(face, bbox_xyxy=box) for face, box in zip(faces, boxes, strict=True)]
    truth, (found,) = true_landmarks(faces, model.contract), find_landmarks([model], boxed, refine=refine)
    return nme_per_face(found, truth, model.contract.landmarks.normalizing_points)


def print_curves(model: LandmarkModel, faces: Sequence[Face]) -> None:
    """Print how NME grows as the true box is moved and scaled, before and after one refining pass."""
    truth = np.stack([face.bbox_xyxy for face in faces])
    maps = {
        "shift x": {by: BoxMap(shift=(by, 0.0)) for by in SHIFTS},
        "shift y": {by: BoxMap(shift=(0.0, by)) for by in SHIFTS},
        "scale": {by: BoxMap(scale=(by, by)) for by in SCALES},
    }
    click.echo(f"\n### {model.name}: NME by how the true box is moved and scaled")
    for kind, moves in maps.items():
        rows = []
        for refine in (0, 1):
            found = (nmes(model, faces, move(truth), refine).mean() for move in moves.values())
            rows.append([f"refine={refine}", *(f"{nme:.4f}" for nme in found)])
        print_table([kind, *(f"{by:g}" for by in moves)], rows)


if __name__ == "__main__":
    main()
