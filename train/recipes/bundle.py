"""Makes the bundled files from a training run: the slim checkpoint and the runtime's INT8 model.

    python train/recipes/bundle.py RUN SHARED

RUN is a folder of `pfld-edge train`, SHARED holds data/WFLW. The INT8 ranges come from the bundled portraits, as
with `pfld-edge convert --int8`: on unlabelled WFLW faces the INT8 landmarks then stay within 0.003 of the eye distance
of the float ones in the mean, where MinMax over 256 such faces, some of them odd, gives 0.017. Both files' contracts
get the NME on the faces of WFLW's test list, which neither training nor calibration has seen.
"""

import sys
from dataclasses import replace
from pathlib import Path

import onnx

from pfld_edge_calib import labelled_faces, nme_per_face, predict_landmarks, true_landmarks
from pfld_edge_convert.calibration_batches import FaceSource, calibration_crops, proof_crops
from pfld_edge_convert.contract_io import write_model
from pfld_edge_convert.int8_stage import Int8Request
from pfld_edge_convert.network import open_network
from pfld_edge_convert.pipeline import convert, int8_path
from pfld_edge_runtime import BUNDLED_MODEL, Contract
from pfld_edge_train.checkpoint import load_checkpoint, save_checkpoint

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/pfld-edge-s.pth"


def measured(path: Path, wflw: Path) -> dict[str, object]:
    """Contract fields that tell a file's accuracy."""
    faces, network = labelled_faces(wflw), open_network(path)
    truth = true_landmarks(faces, network.contract)
    predicted = predict_landmarks(network.predict, network.contract, faces)
    nme = nme_per_face(predicted, truth, network.contract.landmarks.normalizing_points).mean()
    return {"nme": round(float(nme), 5), "nme_data": f"{len(faces)} faces of the WFLW test split"}


def slim_checkpoint(run: Path, wflw: Path) -> Contract:
    """Keep the averaged weights of the best epoch alone; give the checkpoint's contract."""
    best = load_checkpoint(run / "best.pth")
    if best.ema_weights is None or best.contract is None:
        raise SystemExit(f"{run / 'best.pth'} is not a training checkpoint")
    slim = replace(best, weights=best.ema_weights, ema_weights=None, optimizer=None, config=None)
    save_checkpoint(CHECKPOINT, slim)
    contract = Contract.from_dict(best.contract).replace(**measured(CHECKPOINT, wflw))
    save_checkpoint(CHECKPOINT, replace(slim, contract=contract.to_dict()))
    return contract


def main() -> None:
    """Write checkpoints/pfld-edge-s.pth and the runtime's model."""
    from pfld_edge_train.checkpoint import load_model

    run, shared = (Path(argument) for argument in sys.argv[1:3])
    wflw = shared / "data/WFLW"
    contract = slim_checkpoint(run, wflw)
    chosen = calibration_crops(FaceSource(), contract)
    plain = run / "pfld-edge-s.onnx"
    convert(load_model(CHECKPOINT)[0], contract, plain, proof_crops(contract), Int8Request(chosen.crops, chosen.source))
    quantized = int8_path(plain)
    final = open_network(quantized).contract.replace(**measured(quantized, wflw))
    write_model(onnx.load(str(quantized)), final, BUNDLED_MODEL)
    print(f"checkpoint NME {contract.nme}, INT8 NME {final.nme}, {BUNDLED_MODEL.stat().st_size} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
