"""Types of option values, and options that several commands share."""

import os
import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.types import FuncParamType

if TYPE_CHECKING:
    from pfld_edge_calib.parallel import Runner

T = TypeVar("T")
Command = Callable[..., Any]
Box = tuple[float, float, float, float]

WHOLE: Box = (0.0, 0.0, float("inf"), float("inf"))
"""The box of a whole photograph, whatever its size: ``--box whole``."""
BUNDLED = "bundled"
"""What `open_detector` calls the detector that comes with the runtime, the default of ``--detector``."""

DRAWABLE = ("points", "contours", "boxes", "pose", "ids", "confidence")
"""Parts of a drawing that `--draw` names."""


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class _GivenPath(click.Path):
    """A path that is not empty, as an unset variable of a shell is, which would mean the working folder; no address."""

    def __init__(self, **settings: bool) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Refuse an empty name, then do as click does."""
        if value == "":
            self.fail("the name is empty", param, ctx)
        if isinstance(value, str) and _ADDRESS.match(value):
            self.fail(f"{value} is an address, and only files are read: download it first", param, ctx)
        return super().convert(value, param, ctx)


class _ResultPath(_GivenPath):
    """A place for results, which is looked at before work begins: its folder is there, or can be made.

    Names end in one of the suffixes of `what` (lower case), if there are any; ``.jpeg`` and ``.htm`` are others' names.
    """

    def __init__(self, what: str = "", *suffixes: str, **settings: bool) -> None:
        super().__init__(**settings)
        self._what, self._suffixes = what, suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Refuse another suffix, and a place below a file or in a folder that can't be written to."""
        path = Path(super().convert(value, param, ctx))
        suffix = path.suffix.lower()
        if self._suffixes and {".jpeg": ".jpg", ".htm": ".html"}.get(suffix, suffix) not in self._suffixes:
            self.fail(f"the {self._what} must end in {' or '.join(self._suffixes)}, not {path.name}", param, ctx)
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            self.fail(f"{path} can't be made: {folder} is a file", param, ctx)
        if not os.access(path if path.exists() else folder, os.W_OK):
            self.fail(f"{path} can't be written: permission denied", param, ctx)
        return path


PATH = _GivenPath()
RESULT = _ResultPath()
RESULT_FILE = _ResultPath(dir_okay=False)
RESULT_FOLDER = _ResultPath(file_okay=False)


# Quoted, for before click 8.5 the class has one type parameter.
def _parsed(name: str, parse: Callable[[str], T]) -> "FuncParamType[str, T]":
    """Make an option's type of a function that raises ValueError with a sentence for the user."""
    kind = FuncParamType(parse)
    kind.name = name
    return kind


def _share(text: str) -> float:
    text = text.strip()
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        raise ValueError(f"{text!r} is not a percentage; write 0.5%") from None
    if not text.endswith("%"):
        raise ValueError(f"{text!r} has no percent sign, so it could mean {text}% or {100 * 100 * share:g}%: write one")
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is not between 0% and 100%")
    return share


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of whole numbers; write 1 or 1,2") from None
    if min(numbers) < 1:
        raise ValueError(f"{text!r}: every number must be at least 1")
    return tuple(dict.fromkeys(numbers))


def _axis_size(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name or not size.isdecimal() or int(size) < 1:
        raise ValueError(f"{text!r} is not a name and a size; write height=480")
    return name, int(size)


def _draw_list(text: str) -> frozenset[str]:
    parts = frozenset(part.strip() for part in text.split(",")) - {"none", ""}
    unknown = sorted(parts - {*DRAWABLE})
    if unknown:
        raise ValueError(f"{unknown[0]!r} can't be drawn; known: {', '.join(DRAWABLE)}, none")
    return parts


def _box(text: str) -> Box:
    if text == "whole":
        return WHOLE
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{text!r} is not a box; give four pixel coordinates, e.g. 120,80,260,240, or whole for the whole picture"
        ) from None
    return x0, y0, x1, y1


class _JsonTarget(_ResultPath):
    """The name of a file of some suffixes, or ``-``."""

    name = "file"

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        super().__init__(dir_okay=False)
        self._kinds = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Refuse other names: the word after `--json` may be a model, say, which must not be written over."""
        if value != "-" and Path(value).suffix.lower() not in self._kinds:
            kinds = " or ".join(self._kinds)
            self.fail(f"{value!r} is no {kinds} file; write --json - for standard output", param, ctx)
        return "-" if value == "-" else str(super().convert(value, param, ctx))


SHARE = _parsed("percent", _share)
"""A fraction, 0 to 1, written as a percentage: ``0.5%``."""
NUMBER_LIST = _parsed("n,n", _numbers)
"""Whole numbers of at least 1, as ``1,2,8``, without duplicates."""
AXIS_SIZE = _parsed("name=size", _axis_size)
"""The size of a free axis, as ``height=480``."""
DRAW_LIST = _parsed("PARTS", _draw_list)
"""A set of `DRAWABLE`, as ``points,contours``; ``none`` for the empty set."""
BOX = _parsed("x0,y0,x1,y1", _box)
"""A box in pixels, or `WHOLE`."""


def result_file(what: str, *suffixes: str) -> click.Path:
    """Make the type of a file that is written, whose name ends in one of these suffixes."""
    return _ResultPath(what, *suffixes, dir_okay=False)


def output_option(
    help: str,  # noqa: A002 - click's word
    kind: click.Path = RESULT_FILE,
    *,
    required: bool = True,
    default: str | None = None,
) -> Callable[[Command], Command]:
    """Make ``-o/--output``, the file or folder that a command writes; `help` says which."""
    needed = required and default is None
    return click.option("-o", "--output", required=needed, default=default, type=kind, help=help)


def detector_option(more: str = "", *, multiple: bool = False) -> Callable[[Command], Command]:
    """Make ``--detector``, a name or a file; with `multiple` it may be repeated and is called `detectors`."""
    names = "bundled, yunet, scrfd, ultraface (`pfld-edge detector`) or an ONNX file"
    help = f"Finds the faces: {names}{more}."  # noqa: A001
    return click.option("--detector", "detectors" if multiple else "detector", multiple=multiple, help=help)


def json_option(help: str, *suffixes: str) -> Callable[[Command], Command]:  # noqa: A002 - click's word
    """Make ``--json [FILE]``: a file of these suffixes or ``.json``, or ``-`` or nothing for standard output."""
    return click.option(
        "--json",
        "json_target",
        type=_JsonTarget((".json", *suffixes)),
        is_flag=False,
        flag_value="-",
        help=f"{help}: into {' or '.join(('a .json', *suffixes))} file, or to standard output (- or no value).",
    )


strict_option = click.option(
    "--strict", is_flag=True, help="Stop at a file that can't be read, instead of skipping it."
)
images_option = click.option("--images", type=PATH, help="Folder of a CSV's images; its own where left out.")
split_option = click.option(
    "--split", type=click.Choice(["test", "train"]), default="test", help="Which list of a WFLW folder."
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads for ONNX files."
)
runtime_option = click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=click.Choice(["onnxruntime", "openvino", "litert", "tflite-micro"]),
    help="Run each file in those of these that read it (repeatable); onnxruntime and LiteRT without.",
)
ray_option = click.option(
    "--ray",
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="Run on a Ray cluster (write --ray=ADDRESS), or on one of this machine's cores; needs pfld-edge[ray].",
)


def all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Join options into one decorator; the first is the first in the help."""
    return lambda command: reduce(lambda inner, option: option(inner), reversed(options), command)


reading_options = all_of(
    click.option("--output-name", help="The output with the landmarks, where several could be."),
    click.option(
        "--output-order",
        type=click.Choice(["x0 y0 x1 y1", "x0 x1 y0 y1", "x0 y0 z0", "heat maps"]),
        help="Its order; as its shape says if left out.",
    ),
    click.option(
        "--output-space",
        type=click.Choice(["0..1", "-1..1", "pixels"]),
        help="Its coordinates in the crop; found on the bundled portraits if left out.",
    ),
)
"""The fields of `pfld_edge_convert.landmark_graph.Reading`, as options."""


set_options = all_of(
    click.option(
        "--data",
        "data",
        type=PATH,
        multiple=True,
        help="A WFLW folder, a CSV of points, a COCO file, a folder of .pts files, or shards; may be repeated.",
    ),
    images_option,
    split_option,
    click.option(
        "--workers", type=click.IntRange(1), help="Processes; one for each core if left out, none for a small set."
    ),
    click.option(
        "--resume",
        type=RESULT_FOLDER,
        metavar="FOLDER",
        help="Keep results here as they come; a run that was stopped goes on with the same command.",
    ),
    ray_option,
    strict_option,
)
"""The fields of `pfld_edge.evaluation_run.MeasuredSet`, as options."""


def runner(workers: int | None, ray: str | None, tasks: int) -> "Runner":
    """Choose where so many tasks run: a Ray cluster (an empty address: a new one), or processes of this machine."""
    if ray is not None:
        from pfld_edge_calib.parallel import run_on_ray

        return run_on_ray(ray or None, workers)
    from pfld_edge_calib.parallel import run_locally, usable_cores

    return run_locally(max(1, min(workers or usable_cores(), tasks)))
