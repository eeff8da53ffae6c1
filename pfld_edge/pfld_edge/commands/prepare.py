"""`pfld-edge prepare`: cuts a data set's faces once, into shards that training reads."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pfld_edge.options import PATH, RESULT_FOLDER, all_of, output_option, strict_option

if TYPE_CHECKING:
    from pfld_edge_calib import Face
    from pfld_edge_calib.datasets.prepared import Manifest, PrepareSettings

_shared_options = all_of(
    output_option("Folder of the shards.", RESULT_FOLDER),
    click.option("--input-size", default=112, show_default=True, help="Of the networks that will be trained, pixels."),
    click.option("--margin", default=1.2, show_default=True, help="Their crop's side over the landmark box's."),
    click.option("--encoding", default="jpeg", show_default=True, type=click.Choice(["jpeg", "raw"])),
    click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of JPEG."),
    click.option("--shard-faces", type=click.IntRange(1), default=1024, show_default=True, help="Faces a shard."),
    click.option("--workers", type=click.IntRange(1), help="Processes; one for each core if left out."),
    strict_option,
)


@click.group("prepare")
def prepare_command() -> None:
    """Cut the faces of a data set once, with room for augmentation, into shards for `pfld-edge train`.

    Interrupted or killed, the same command goes on where it stopped. A set that is whole is left alone. Photographs
    that can't be read are skipped and named; the exit status is then 2.
    """


@prepare_command.command("wflw")
@click.argument("source", metavar="ARCHIVE_OR_FOLDER", type=PATH)
@click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True)
@_shared_options
def prepare_wflw(source: Path, split: str, output: Path, **options: Any) -> None:  # noqa: ANN401
    """WFLW: its folder, one of its two official archives, or the folder that holds both archives.

    Faces of the test list are for measuring; `train` refuses them.
    """
    from pfld_edge.console import progress_bar
    from pfld_edge_calib import FaceSetError, read_wflw
    from pfld_edge_calib.datasets.prepared import whole_set
    from pfld_edge_calib.datasets.wflw import ARCHIVES, unpack_wflw, wflw_archives

    settings = _settings(**options)
    if not source.exists():
        raise FaceSetError(f"{source}: no such file or folder")
    if (source / "WFLW_annotations").is_dir() or (source / "WFLW_images").is_dir():
        _prepare(read_wflw(source, split), f"wflw {split}", source, output, **options)
        return
    archives = wflw_archives(source)
    if archives is None:
        raise FaceSetError(
            f"{source}: neither a WFLW folder (WFLW_images, WFLW_annotations) nor one with {' and '.join(ARCHIVES)}"
        )
    # Unpacking takes minutes: a set that is whole needs no photographs.
    before = whole_set(output)
    if before is not None and (before.source, before.settings) == (f"wflw {split}", settings):
        click.echo(f"{before.faces} faces are in {output} already")
        _check_read(before)
        return
    unpacked = output / "unpacked"
    with progress_bar(f"unpacking {archives[0].name}") as advance:
        unpack_wflw(archives, unpacked, split, advance)
    _prepare(read_wflw(unpacked, split), f"wflw {split}", unpacked, output, unpacked, **options)


@prepare_command.command("csv")
@click.argument("source", metavar="POINTS.csv", type=PATH)
@click.option("--images", type=PATH, help="Folder of the CSV's images; its own where left out.")
@click.option("--group-by", type=click.Choice(["image", "person"]), default="image", show_default=True)
@_shared_options
def prepare_csv(source: Path, images: Path | None, group_by: str, output: Path, **options: Any) -> None:  # noqa: ANN401
    """A CSV of points, `image,[weight,]x0,y0,x1,y1,...[,c0,c1,...]`, any number of points."""
    from pfld_edge_calib import read_points_csv

    _prepare(read_points_csv(source, images, group_by), "csv", images or source.parent, output, **options)


@prepare_command.command("coco")
@click.argument("source", metavar="KEYPOINTS.json", type=PATH)
@click.option("--images", type=PATH, help="Folder of the file's images; its own where left out.")
@_shared_options
def prepare_coco(source: Path, images: Path | None, output: Path, **options: Any) -> None:  # noqa: ANN401
    """A COCO keypoint file, any number of points; those of visibility 0 weigh nothing."""
    from pfld_edge_calib import read_coco

    _prepare(read_coco(source, images), "coco", images or source.parent, output, **options)


@prepare_command.command("pts")
@click.argument("source", metavar="FOLDER", type=PATH)
@click.option("--images", type=PATH, help="Folder of the photographs; FOLDER where left out.")
@_shared_options
def prepare_pts(source: Path, images: Path | None, output: Path, **options: Any) -> None:  # noqa: ANN401
    """A folder of 300-W's .pts files, one a face, with photographs of the same names; folders in it count too."""
    from pfld_edge_calib.datasets.pts import read_pts

    _prepare(read_pts(source, images), "pts", images or source, output, **options)


def _settings(workers: int | None, strict: bool, **settings: Any) -> "PrepareSettings":  # noqa: ANN401, ARG001
    from pfld_edge_calib.datasets.prepared import PrepareSettings

    return PrepareSettings(**settings)


def _prepare(
    faces: "list[Face]",
    source: str,
    root: Path,
    output: Path,
    unpacked: Path | None = None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Prepare faces, and say so; then delete what was unpacked for it."""
    from pfld_edge.console import SkippedFiles, note, note_repeated, progress_bar
    from pfld_edge_calib.datasets.prepared import prepare_faces
    from pfld_edge_calib.parallel import usable_cores

    note_repeated(faces)
    skip, workers = SkippedFiles(strict=options["strict"]), options["workers"] or usable_cores()
    try:
        with progress_bar("cutting faces", len(faces)) as advance:
            report = prepare_faces(faces, source, root, output, _settings(**options), workers, advance, skip)
    except KeyboardInterrupt:
        note(f"shards that are done stay in {output}; the same command goes on")
        raise
    if unpacked is not None:
        shutil.rmtree(unpacked)
    manifest = report.manifest
    if report.kept == manifest.faces:
        click.echo(f"{manifest.faces} faces are in {output} already")
    else:
        click.echo(f"{manifest.faces} faces of {manifest.points} points in {len(manifest.shards)} shards -> {output}")
        if manifest.skipped:
            click.echo("left out: " + ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items()))
    _check_read(manifest)


def _check_read(manifest: "Manifest") -> None:
    """Fail where photographs could not be read, in this run or in the one that made the set."""
    from pfld_edge_calib.datasets.prepared import UNREADABLE

    lost = manifest.skipped.get(UNREADABLE, 0)
    if lost:
        raise click.ClickException(
            f"{lost} of {lost + manifest.faces} faces are left out: their photographs could not be read"
        )
