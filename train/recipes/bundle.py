"""Makes the bundled files from a training run: the slim checkpoint, and the runtime's INT8 model.

    python train/recipes/bundle.py RUN SHARED

RUN is a folder of `pfld-edge train`, SHARED holds data/WFLW. The checkpoint becomes `checkpoints/MODEL.pth`; for
pfld-edge-s the runtime gets an INT8 file, calibrated on the bundled portraits as by `pfld-edge convert --int8`. Both
contracts get the NME on WFLW's test list, which neither training nor calibration has seen.
"""

import sys
from dataclasses import replace
from pathlib import Path

import onnx

from pfld_edge_calib import nme_per_face, open_faces, predict_landmarks, true_landmarks
from pfld_edge_convert.calibration import CalibrationSource, calibration_crops, sample_crops
from pfld_edge_convert.int8_stage import Int8Request
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_convert.model_file import write_model
from pfld_edge_convert.pipeline import convert, int8_path
from pfld_edge_runtime import BUNDLED_MODEL, Contract
from pfld_edge_train.checkpoint import load_checkpoint, save_checkpoint

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
IN_RUNTIME = "pfld-edge-s"


def measured(path: Path, wflw: Path) -> dict[str, object]:
    """Contract fields that tell a file's accuracy."""
    faces, network = open_faces(wflw).load(), open_landmark_model(path)
    truth = true_landmarks(faces, network.contract)
    predicted = predict_landmarks(network, faces)
    nme = nme_per_face(predicted, truth, network.contract.landmarks.normalizing_points).mean()
    return {"nme": round(float(nme), 5), "nme_data": f"{len(faces)} faces of the WFLW test split"}


def slim_checkpoint(run: Path, wflw: Path) -> tuple[Path, Contract]:
    """Keep the averaged weights of the best epoch alone; give the new checkpoint and its contract."""
    best = load_checkpoint(run / "best.pth")
    if best.ema_weights is None or best.contract is None:
        raise SystemExit(f"{run / 'best.pth'} is not a training checkpoint")
    target = CHECKPOINTS / f"{best.model.kind}.pth"
    slim = replace(best, weights=best.ema_weights, ema_weights=None, optimizer=None, config=None)
    save_checkpoint(target, slim)
    contract = Contract.from_dict(best.contract).replace(**measured(target, wflw))
    save_checkpoint(target, replace(slim, contract=contract.to_dict()))
    return target, contract


def main() -> None:
    """Write the checkpoint and, of the model that it bundles, the runtime's file."""
    from pfld_edge_train.checkpoint import load_model

    run, shared = (Path(argument) for argument in sys.argv[1:3])
    wflw = shared / "data/WFLW"
    checkpoint, contract = slim_checkpoint(run, wflw)
    print(f"checkpoint NME {contract.nme}")  # noqa: T201
    if checkpoint.stem != IN_RUNTIME:
        return
    chosen = calibration_crops(CalibrationSource(), contract)
    plain = run / f"{IN_RUNTIME}.onnx"
    convert(
        load_model(checkpoint)[0], contract, plain, sample_crops(contract), Int8Request(chosen.crops, chosen.source)
    )
    quantized = int8_path(plain)
    final = open_landmark_model(quantized).contract.replace(**measured(quantized, wflw))
    write_model(onnx.load(str(quantized)), final, BUNDLED_MODEL)
    print(f"INT8 NME {final.nme}, {BUNDLED_MODEL.stat().st_size} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
