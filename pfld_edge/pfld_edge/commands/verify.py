"""`pfld-edge verify`: whether converted files still find the checkpoint's landmarks."""

from pathlib import Path

import click

from pfld_edge.share import Share

__all__ = ["verify_command"]


@click.command("verify")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("models", metavar="ONNX...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A WFLW folder, or a CSV of points; where left out, the two bundled portraits (a smoke test).",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of a CSV's images; its own where left out.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", help="Which list of a WFLW folder.")
@click.option("--max-drift", type=Share(), help="Largest NME increase over the checkpoint's, e.g. 0.5%.")
def verify_command(
    checkpoint: Path,
    models: tuple[Path, ...],
    data: Path | None,
    images: Path | None,
    split: str,
    max_drift: float | None,
) -> None:
    """Compare each ONNX file with the CHECKPOINT it was made from: NME, drift, largest landmark deviation.

    Exits with status 1 where a drift exceeds --max-drift.
    """
    from pfld_edge.accuracy_report import drift_table
    from pfld_edge.console import console, face_progress, note, note_assumed
    from pfld_edge_calib import jittered, labelled_faces, nme_per_face, portraits, predict_landmarks, true_landmarks
    from pfld_edge_calib.drift import measure_drift
    from pfld_edge_convert.network import open_network

    networks = [open_network(path) for path in (checkpoint, *models)]
    if data is None:
        faces = jittered(portraits(networks[0].contract), 32, seed=1)
        if faces[0].landmarks is None:
            name = networks[0].contract.landmarks.name
            raise click.UsageError(f"give --data: nothing bundled has the landmarks of {name!r}")
        note("no --data: two portraits under 32 boxes each show that the files work, they do not measure accuracy")
    else:
        faces = labelled_faces(data, split, images)
    points = networks[0].contract.landmarks.normalizing_points
    truth = true_landmarks(faces, networks[0].contract)
    found = []
    for network in networks:
        note_assumed(network.name, network.assumed)
        with face_progress(network.name, len(faces)) as advance:
            found.append(predict_landmarks(network.predict, network.contract, faces, advance))
    drifts = [measure_drift(predicted, found[0], truth, points) for predicted in found]
    nmes = [float(nme_per_face(predicted, truth, points).mean()) for predicted in found]
    console().print(drift_table([network.name for network in networks], nmes, drifts, faces, max_drift))
    if max_drift is not None and any(drift.nme > max_drift for drift in drifts[1:]):
        raise click.exceptions.Exit(1)
