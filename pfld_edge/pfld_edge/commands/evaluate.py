"""`pfld-edge evaluate`: how accurate a model is, by the published protocol."""

import json
from pathlib import Path

import click

__all__ = ["evaluate_command"]


@click.command("evaluate")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A WFLW folder, or a CSV of points.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of a CSV's images; its own where left out.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", help="Which list of a WFLW folder.")
@click.option("--threads", default=1, show_default=True, help="Threads for ONNX files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate_command(
    models: tuple[Path, ...], data: Path, images: Path | None, split: str, threads: int, as_json: bool
) -> None:
    """Print NME, FR@0.1 and AUC@0.1 of each MODEL (a checkpoint or an ONNX file), for all faces and by subset."""
    from pfld_edge.accuracy_report import accuracy_table
    from pfld_edge.console import console, face_progress, note_assumed
    from pfld_edge_calib import accuracy_by_subset, labelled_faces, nme_per_face, predict_landmarks, true_landmarks
    from pfld_edge_convert.network import open_network

    faces = labelled_faces(data, split, images)
    results = {}
    for path in models:
        network = open_network(path, threads)
        note_assumed(network.name, network.assumed)
        truth = true_landmarks(faces, network.contract)
        with face_progress(network.name, len(faces)) as advance:
            predicted = predict_landmarks(network.predict, network.contract, faces, advance)
        nmes = nme_per_face(predicted, truth, network.contract.landmarks.normalizing_points)
        results[str(path)] = accuracy_by_subset(nmes, [face.attributes for face in faces])
    if as_json:
        from dataclasses import asdict

        record = {model: {subset: asdict(found) for subset, found in by.items()} for model, by in results.items()}
        click.echo(json.dumps(record, indent=2))
    else:
        console().print(accuracy_table(results))
