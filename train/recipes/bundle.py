"""Makes the bundled files of a network from a training run: the slim checkpoint, its ONNX files, its model's contract.

    python train/recipes/bundle.py RUN SHARED OUT [--curve MIDDLE STEEPNESS]

RUN is a folder of `pfld-edge train`, or a checkpoint in it other than best.pth; SHARED holds data/WFLW and
data/WFLW_more. Writes MODEL.pth, MODEL.onnx and MODEL.int8.onnx into OUT, calibrated as by `pfld-edge convert --int8`.
Where the network has heat maps, `spread_curve` is fitted to the run's validation faces. `confidence_curve` is what
benchmarks/confidence.py prints for the INT8 file; give it in a second run. The contracts get the NME on WFLW's test
list, which neither training nor calibration nor the curves have seen.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnx

from pfld_edge_calib import nme_per_face, open_faces, predict_landmarks, true_landmarks
from pfld_edge_calib.evaluation.metrics import fitted_curve, point_errors
from pfld_edge_convert.calibration import CalibrationSource, calibration_crops, sample_crops
from pfld_edge_convert.int8_stage import Int8Request
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_convert.model_file import write_model
from pfld_edge_convert.pipeline import convert, int8_path
from pfld_edge_runtime import Contract, LandmarkModel
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_runtime.contract import GOOD_POINT, ConfidenceCurve
from pfld_edge_train.batches import validation_batches
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.face_cache import open_cache

Faces = tuple[Uint8Array, Float32Array]
"""Crops ``(N, S, S, 3)`` as a network takes them, and their landmarks ``(N, P, 2)`` as fractions of the crop."""


def validation_faces(path: Path, checkpoint: Checkpoint, contract: Contract) -> Faces:
    """The faces that a run held out."""
    if checkpoint.config is None:
        raise SystemExit(f"{path} is not a training checkpoint")
    cache = open_cache(TrainConfig.from_dict(checkpoint.config), path.parent / "cache", contract)
    batches = list(validation_batches(cache, contract, 64))
    pixels = np.concatenate([batch.faces.permute(0, 2, 3, 1).numpy() for batch in batches])
    crops = np.rint(pixels * np.array(contract.scale) + np.array(contract.mean)).astype(np.uint8)
    return crops, np.concatenate([batch.landmarks.numpy() for batch in batches])


def measured(path: Path, shared: Path) -> dict[str, object]:
    """Contract fields that tell a file's accuracy."""
    faces = [face for name in ("WFLW", "WFLW_more") for face in open_faces(shared / "data" / name).load()]
    network = open_landmark_model(path)
    truth = true_landmarks(faces, network.contract)
    predicted = predict_landmarks(network, faces)
    nme = nme_per_face(predicted, truth, network.contract.landmarks.normalizing_points).mean()
    return {"nme": round(float(nme), 5), "nme_data": f"{len(faces)} faces of the WFLW test split"}


def ship(checkpoint: Checkpoint, contract: Contract, faces: Faces, shared: Path, out: Path) -> None:
    """Write the files of a network; its weights are the averaged ones where there are any.

    `faces` are labelled and no training faces. Prints each figure that a model card needs.
    """
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{checkpoint.model.kind}.pth"
    weights = checkpoint.weights if checkpoint.ema_weights is None else checkpoint.ema_weights
    slim = replace(checkpoint, weights=weights, ema_weights=None, optimizer=None, config=None, auxiliary=None)
    save_checkpoint(target, replace(slim, contract=contract.to_dict()))
    chosen, plain = calibration_crops(CalibrationSource(), contract), target.with_suffix(".onnx")
    request = Int8Request(chosen.crops, chosen.source, allow_slower=True, unusual=chosen.unusual)
    convert(load_model(target)[0], contract, plain, sample_crops(contract), request)
    crops, landmarks = faces
    for path in (plain, int8_path(plain)):
        found, spreads = LandmarkModel.open(path).predict_with_spread(crops)
        nme = nme_per_face(found, landmarks, contract.landmarks.normalizing_points).mean()
        print(f"{path.name}: NME {nme:.5f} on {len(crops)} held-out faces")  # noqa: T201
    if np.isfinite(spreads).all():
        contract = contract.replace(spread_curve=fitted_curve(spreads, point_errors(found, landmarks) < GOOD_POINT))
        print(f"spread curve: {contract.spread_curve}")  # noqa: T201
    save_checkpoint(target, replace(slim, contract=contract.replace(**measured(target, shared)).to_dict()))
    for path in (plain, int8_path(plain)):
        final = open_landmark_model(path).contract.replace(spread_curve=contract.spread_curve, **measured(path, shared))
        write_model(onnx.load(str(path)), final, path)
        print(f"{path.name}: NME {final.nme} on {final.nme_data}, {path.stat().st_size} bytes")  # noqa: T201


@click.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("shared", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--curve", type=float, nargs=2, help="Middle and steepness of the confidence curve.")
def main(run: Path, shared: Path, out: Path, curve: tuple[float, float] | None) -> None:
    """Write the files of a run's best epoch, or of another checkpoint of it."""
    path = run / "best.pth" if run.is_dir() else run
    best = load_checkpoint(path)
    if best.contract is None:
        raise SystemExit(f"{path} is not a training checkpoint")
    contract = Contract.from_dict(best.contract)
    contract = contract.replace(confidence_curve=ConfidenceCurve(*curve) if curve else contract.confidence_curve)
    ship(best, contract, validation_faces(path, best, contract), shared, out)


if __name__ == "__main__":
    main()
