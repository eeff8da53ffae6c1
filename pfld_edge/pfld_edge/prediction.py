"""The work of `pfld-edge predict`: photographs and videos one after the other, and what is kept of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import click

from pfld_edge.console import face_progress, note, photo_count
from pfld_edge.errors import OutputError
from pfld_edge.face_drawing import draw_faces
from pfld_edge.face_records import FrameFaces, as_csv, as_json, as_json_line
from pfld_edge.face_search import FaceSearch
from pfld_edge.output_file import picture_paths, write_atomically, write_picture
from pfld_edge.video import VIDEO_SUFFIXES, VideoSource, video_sink
from pfld_edge_calib import photos_in, read_photo
from pfld_edge_runtime import Detector, FaceTracker, LandmarkScheme, Smoothing

__all__ = ["Prediction", "Tracking", "sorted_inputs"]


def sorted_inputs(inputs: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Part photographs, those in folders among them, from videos.

    Raises:
        FaceSetError: A folder holds no photograph.
    """
    photos: list[Path] = []
    videos: list[Path] = []
    for path in inputs:
        if path.is_dir():
            photos += photos_in(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            videos.append(path)
        else:
            photos.append(path)
    return photos, videos


@dataclass(frozen=True)
class Tracking:
    """How faces are followed through a video; see `FaceTracker`.

    Attributes:
        detector: Finds faces.
        every: Frames from one detection to the next.
        max_faces: Most faces.
        smooth: Steady the points.
        frames: Stop after so many.
    """

    detector: Detector
    every: int = 15
    max_faces: int | None = None
    smooth: bool = True
    frames: int | None = None


class Prediction:
    """A run whose records are written when it ends, by an interruption too."""

    def __init__(
        self,
        out: Path,
        draw: Collection[str],
        scheme: LandmarkScheme,
        json_path: Path | None = None,
        csv_path: Path | None = None,
    ) -> None:
        """Say where everything goes."""
        self._out, self._draw, self._scheme = out, draw, scheme
        self._json, self._csv = json_path, csv_path
        self._found: list[FrameFaces] = []

    def __enter__(self) -> "Prediction":
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Write the records, unless something can't be used; an interruption keeps what was found."""
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self._write_records()

    def photographs(self, photos: Sequence[Path], search: FaceSearch) -> None:
        """Draw photographs, each written as soon as it is done.

        Raises:
            OutputError: There is no place for the pictures.
            FaceSetError: One can't be read.
        """
        if not photos:
            return
        for path, target in zip(photos, picture_paths(photos, self._out), strict=True):
            photo = read_photo(path)
            faces = search(photo)
            write_picture(target, draw_faces(photo, faces, self._draw))
            self._found.append(FrameFaces(str(path), faces))
            click.echo(f"{path} -> {target}" + (f" ({len(faces)} faces)" if search.analyze else ""))

    def video(self, source: Path | int, search: FaceSearch, tracking: Tracking) -> None:
        """Draw a video, or what a camera sees.

        Raises:
            InputError: It can't be opened.
            OutputError: There is no place for the result.
        """
        target = self._video_path(source)
        frames = VideoSource(source)
        tracker = FaceTracker(
            tracking.detector,
            search.network,
            every=tracking.every,
            max_faces=tracking.max_faces,
            smoothing=Smoothing() if tracking.smooth else None,
            fps=frames.fps,
        )
        expected = [count for count in (frames.length, tracking.frames) if count is not None]
        bar = face_progress(frames.name, min(expected)) if expected else photo_count(frames.name)
        done = 0
        try:
            with video_sink(target, frames.fps) as sink, bar as advance:
                for frame in frames:
                    faces = search.rated(tracker(frame, color="bgr"), frame)
                    sink.write(draw_faces(frame, faces, self._draw))
                    self._found.append(FrameFaces(frames.name, faces, done, done / frames.fps))
                    done += 1
                    advance(1)
                    if done == tracking.frames:
                        break
        except KeyboardInterrupt:
            note(f"{target}: {done} frames kept")
            raise
        if not done:
            raise OutputError(f"{frames.name}: no frame in it")
        click.echo(f"{frames.name} -> {target} ({done} frames)")

    def _video_path(self, source: Path | int) -> Path:
        if self._out.suffix.lower() == ".mp4":
            if isinstance(source, Path) and self._out.exists() and source.exists() and self._out.samefile(source):
                raise OutputError(f"{self._out} is the video itself: give another file, or a folder")
            return self._out
        if self._out.exists() and not self._out.is_dir():
            raise OutputError(f"{self._out} is neither a folder nor an .mp4 file")
        return self._out / f"{source.stem if isinstance(source, Path) else f'camera{source}'}-landmarks.mp4"

    def _write_records(self) -> None:
        if self._json is not None:
            lines = self._json.suffix.lower() == ".jsonl"
            text = "".join(as_json_line(frame, self._scheme) for frame in self._found).encode() if lines else b""
            write_atomically(self._json, text if lines else as_json(self._found, self._scheme))
            click.echo(f"landmarks -> {self._json}")
        if self._csv is not None:
            write_atomically(self._csv, as_csv(self._found, self._scheme))
            click.echo(f"landmarks -> {self._csv}")
