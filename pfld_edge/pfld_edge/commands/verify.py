"""`pfld-edge verify`: whether converted files still find the checkpoint's landmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pfld_edge import options


@click.command("verify")
@click.argument("models", metavar="CHECKPOINT MODEL...", nargs=-1, required=True, type=options.PATH)
@click.option(
    "--reference", type=options.PATH, help="A float ONNX file that the MODELs were made from; no CHECKPOINT then."
)
@options.reading_options
@options.runtime_option
@options.set_options
@click.option("--max-drift", type=options.SHARE, help="Largest NME increase over the checkpoint's, e.g. 0.5%.")
@click.option(
    "--accept-inconclusive", "--accept-undecided", is_flag=True, help="Exit with 0 where the faces are too few to tell."
)
@click.option("--fused/--no-fused", default=True, show_default=True, help="Also run the checkpoint's fused torch form.")
@click.option("--worst", type=options.RESULT_FOLDER, help="Folder for pictures of the faces that deviate most.")
@options.json_option("Write all figures")
@click.option("--report", type=options.result_file("report", ".html"), help="Write an HTML page with everything in it.")
@click.option("--robustness", is_flag=True, help="Also measure the NME under blur, noise, rotation, shifted boxes...")
@click.option(
    "--robustness-plot",
    type=options.result_file("plot", ".png", ".jpg"),
    help="PNG of these curves; implies --robustness.",
)
@options.threads_option
def verify_command(
    models: tuple[Path, ...],
    reference: Path | None,
    output_name: str | None,
    output_order: str | None,
    output_space: str | None,
    runtimes: tuple[str, ...],
    max_drift: float | None,
    accept_inconclusive: bool,
    fused: bool,
    worst: Path | None,
    json_target: str | None,
    report: Path | None,
    robustness: bool,
    robustness_plot: Path | None,
    threads: int,
    **of_set: Any,  # noqa: ANN401 - `set_options`
) -> None:
    """Compare each MODEL (ONNX, LiteRT, end-to-end graph, checkpoint) with the CHECKPOINT it was made from.

    Prints the drift of the NME with its 95 % interval, deviations by subset and part of the face, and, where something
    is off, what likely caused it. With --max-drift a model passes if the whole interval lies within, fails if it lies
    beyond, and is inconclusive if these faces can't tell. Without --data the faces are the two bundled portraits, a
    smoke test.

    Exits with status 1 where a model failed or is inconclusive, and, with a budget or without, where it is another
    network than the checkpoint, has another contract, or gives no numbers. Else with 2 where photographs can't be read,
    which are skipped and named. Faces wholly outside of their photographs are left out and named.
    """
    from pfld_edge.console import console, note, note_assumed, progress_bar
    from pfld_edge.evaluation_run import MeasuredSet, write_results
    from pfld_edge.evaluation_tables import print_verification, robustness_table
    from pfld_edge_calib import Face, jittered, portraits
    from pfld_edge_calib.datasets.open_faces import is_sharded
    from pfld_edge_calib.evaluation.robustness import measure_robustness
    from pfld_edge_calib.evaluation.verification import VerificationSettings
    from pfld_edge_convert import landmark_models
    from pfld_edge_convert.diagnosis import diagnosed
    from pfld_edge_convert.landmark_graph import Reading

    reading = Reading(output_name, output_order, output_space)
    if reference is None:
        if reading != Reading():
            raise click.UsageError("--output-name, --output-order and --output-space tell how to read a --reference")
        checkpoint, *rest = models
        if not rest:
            raise click.UsageError("give the checkpoint and the files made from it, or --reference and these files")
    else:
        checkpoint, rest = reference, list(models)
    given = None if reference else landmark_models.open_landmark_model(checkpoint, threads)
    opened = [model for path in rest for model in landmark_models.open_in_runtimes(path, threads, runtimes)]
    opened.insert(0, given or landmark_models.open_reference(checkpoint, threads, opened[0].contract, reading))
    if fused and opened[0].kind == "torch":
        opened.insert(1, landmark_models.open_landmark_model(checkpoint, fused=True))
    measured = MeasuredSet(**of_set)
    if (robustness or robustness_plot is not None) and any(map(is_sharded, measured.data)):
        raise click.UsageError(
            "--robustness looks at each photograph many times: give a WFLW folder or a CSV, not shards"
        )
    faces: Sequence[Face]
    if not measured.data:
        faces = jittered(portraits(opened[0].contract), 32, seed=1)
        if faces[0].landmarks is None:
            name = opened[0].contract.landmarks.name
            raise click.UsageError(f"give --data: nothing bundled has the landmarks of {name!r}")
        note("no --data: two portraits under 32 boxes each show that the files work, they do not measure accuracy")
    else:
        faces = measured.faces()
    for model in opened:
        note_assumed(model.name, model.assumed, model.contract)
    settings = VerificationSettings(measured.name, measured.split, max_drift, accept_inconclusive)
    found = measured.verify(opened, faces, settings)
    found = diagnosed(found, opened, lambda name: note(f"looking for what may be wrong with {name}"))
    curves = None
    if robustness or robustness_plot is not None:
        # The fused form of a checkpoint is the checkpoint.
        chosen = [model for model in opened if model.kind != "fused torch"]
        whole = range(len(found.faces))
        faces = found.recorded_faces(whole) if measured.streamed else measured.unusable.others(faces)
        with progress_bar("corrupted faces", len(faces)) as advance:
            curves = measure_robustness(chosen, faces, advance)
        console(stderr=json_target == "-").print(robustness_table(curves))
        if robustness_plot is not None:
            from pfld_edge.report.charts import robustness_chart, write_chart

            write_chart(robustness_plot, robustness_chart, curves)
    compared = landmark_models.compare_runtimes(opened, found) if runtimes else []
    write_results(found, json_target, worst, curves, compared)
    if report is not None:
        from pfld_edge.report.page import write_report

        write_report(found, report, curves)
    print_verification(found, stderr=json_target == "-")
    if compared:
        from pfld_edge.bench_tables import float_lines, runtime_table

        console(stderr=json_target == "-").print(runtime_table(compared))
        for line in float_lines(compared):
            note(line)
    if found.fell_short:
        raise click.exceptions.Exit(1)
    measured.skip.check()
