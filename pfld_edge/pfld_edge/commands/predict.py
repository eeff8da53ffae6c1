"""`pfld-edge predict`: draws the landmarks of the faces in photographs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pfld_edge_convert.network import Network

__all__ = ["predict_command"]

Box = tuple[float, float, float, float]


class BoxType(click.ParamType[Box]):
    """A box as one word, `x0,y0,x1,y1`."""

    name = "x0,y0,x1,y1"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Box:
        """Read the four numbers."""
        try:
            x0, y0, x1, y1 = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a box; give four pixel coordinates, e.g. 120,80,260,240", param, ctx)
        return x0, y0, x1, y1


@click.command("predict")
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PHOTO...")
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder, or a .png or .jpg file for one PHOTO."
)
@click.option(
    "--model", type=click.Path(path_type=Path), help="Checkpoint or ONNX file; the bundled INT8 file where left out."
)
@click.option(
    "--box", "boxes", multiple=True, type=BoxType(), help="A face, tight around its landmarks; may be repeated."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the landmarks to this file.")
@click.option("--threads", type=click.IntRange(0), default=1, show_default=True, help="0: onnxruntime's choice.")
def predict_command(
    photos: tuple[Path, ...],
    out: Path,
    model: Path | None,
    boxes: tuple[Box, ...],
    json_path: Path | None,
    threads: int,
) -> None:
    """Draw the landmarks of the faces in each PHOTO.

    Faces are given by --box, in pixels of a single PHOTO; without a box the whole picture is taken as one face.
    A folder as -o gets one PNG a photograph.
    """
    from pfld_edge.console import note_assumed
    from pfld_edge.drawing import draw_landmarks
    from pfld_edge.output_file import picture_paths, write_atomically, write_picture
    from pfld_edge_calib import read_photo
    from pfld_edge_convert.network import open_network
    from pfld_edge_runtime import BUNDLED_MODEL

    if boxes and len(photos) > 1:
        raise click.UsageError("--box goes with a single PHOTO")
    targets = picture_paths(photos, out)
    network = open_network(model or BUNDLED_MODEL, threads)
    note_assumed(network.name, network.assumed)
    scheme = network.contract.landmarks
    records = []
    for path, target in zip(photos, targets, strict=True):
        photo = read_photo(path)
        faces = boxes or ((0, 0, photo.shape[1], photo.shape[0]),)
        landmarks = _find_landmarks(network, photo, faces)
        write_picture(target, draw_landmarks(photo, landmarks, scheme))
        records.append(_record(path, faces, landmarks))
        click.echo(f"{path} -> {target}")
    if json_path is not None:
        write_atomically(json_path, json.dumps({"scheme": scheme.name, "photos": records}, indent=1).encode())
        click.echo(f"landmarks -> {json_path}")


def _find_landmarks(network: "Network", photo: "NDArray[np.uint8]", boxes: tuple[Box, ...]) -> "NDArray[np.float32]":
    """Run a network on the faces of a BGR photograph; ``(N, P, 2)`` photograph pixels."""
    from pfld_edge_runtime import crop_faces, crop_windows

    contract = network.contract
    windows = crop_windows(boxes, contract.crop.margin)
    crops = crop_faces(photo, windows, contract.input_size, swap_channels=contract.color_order == "rgb")
    return windows.to_image(network.predict(crops))


def _record(photo: Path, boxes: tuple[Box, ...], landmarks: "NDArray[np.float32]") -> dict[str, Any]:
    """Say in plain JSON types what was found; pixels to a hundredth."""
    faces = [
        {"box": list(box), "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in points]}
        for box, points in zip(boxes, landmarks, strict=True)
    ]
    return {"photo": str(photo), "faces": faces}
