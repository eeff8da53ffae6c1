"""`pfld-edge evaluate`: how accurate a model is, by the published protocol."""

from pathlib import Path
from typing import Any

import click

from pfld_edge.options import PATH, RESULT_FOLDER, detector_option, json_option, set_options, threads_option


@click.command("evaluate")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=PATH)
@set_options
@detector_option("; those that it misses count as failures")
@click.option("--refine", type=click.IntRange(0), default=1, show_default=True, help="Further looks at found faces.")
@threads_option
@click.option(
    "--turned", is_flag=True, help="Also measure the NME of faces turned in the image plane, every 30 degrees."
)
@click.option("--worst", type=RESULT_FOLDER, help="Folder for pictures of the faces with the largest errors.")
@json_option("Write all figures")
def evaluate_command(
    models: tuple[Path, ...],
    detector: str | None,
    refine: int,
    threads: int,
    turned: bool,
    worst: Path | None,
    json_target: str | None,
    **options: Any,  # noqa: ANN401 - of the set
) -> None:
    """Print NME, FR and AUC of each MODEL (checkpoint, ONNX file, end-to-end graph), for all faces and by subset.

    Faces are cut by the tight box of their true landmarks (the published protocol), or with --detector by the box of
    the detection that overlaps it most. Photographs that can't be read are skipped and named; the exit status is then
    2. Faces wholly outside of their photographs are left out and named. With --turned each face is also looked for at
    twelve angles, by its tight box and with crops that follow its roll.
    """
    from pfld_edge.console import console, note_assumed, progress_bar
    from pfld_edge.evaluation_run import MeasuredSet, write_results
    from pfld_edge.evaluation_tables import print_evaluation, turned_table
    from pfld_edge_calib import true_landmarks
    from pfld_edge_calib.evaluation.robustness import measure_turned
    from pfld_edge_calib.evaluation.verification import VerificationSettings
    from pfld_edge_calib.find_landmarks import as_detected_by
    from pfld_edge_convert.landmark_models import open_landmark_model
    from pfld_edge_runtime import open_detector

    measured = MeasuredSet(**options)
    if not measured.data:
        raise click.UsageError("Missing option '--data'.")
    finder = None if detector is None else open_detector(detector)
    if measured.streamed and (detector is not None or turned):
        option = "--turned" if detector is None else "--detector"
        raise click.UsageError(f"{option} can't be used with shards, large sets, --workers, --resume and --ray")
    faces = whole = measured.faces()
    opened = [open_landmark_model(path, threads) for path in models]
    for model in opened:
        note_assumed(model.name, model.assumed, model.contract)
        if not measured.streamed:
            true_landmarks(faces, model.contract)
    if finder is not None:
        with progress_bar("detector", len(faces)) as advance:
            faces = as_detected_by(finder, faces, opened[0].contract, advance, measured.unusable)
    settings = VerificationSettings(measured.name, measured.split, detector=detector or "")
    found = measured.verify(opened, faces, settings, compare=False, refine=0 if finder is None else refine)
    curves = None
    if turned:
        with progress_bar("turned faces", len(whole)) as advance:
            curves = measure_turned(opened, measured.unusable.others(whole), advance)
    write_results(found, json_target, worst, curves)
    if json_target != "-":
        print_evaluation(found)
        if curves is not None:
            console().print(turned_table(curves))
    measured.skip.check()
