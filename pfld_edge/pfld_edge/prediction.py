"""The work of `pfld-edge predict`: finds faces in photographs and videos, draws them and records them."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import click

from pfld_edge.console import InputError, OutputError, SkippedFiles, note, note_faceless, note_left_out, progress_bar
from pfld_edge.drawing import draw_faces, write_picture
from pfld_edge.options import WHOLE, Box
from pfld_edge.records import FrameFaces, RecordFile
from pfld_edge.video import VIDEO_SUFFIXES, VideoSink, VideoSource
from pfld_edge_calib import FaceSetError, read_photo
from pfld_edge_calib.photo import photos_in
from pfld_edge_runtime import (
    FaceAnalyzer,
    FaceLandmarker,
    Faces,
    FaceTracker,
    ModelFileError,
    landmark_confidence,
    predict_with_mirror,
    read_faces,
)
from pfld_edge_runtime.arrays import Uint8Array

_PICTURES = frozenset({".png", ".jpg", ".jpeg"})
_DRAWN = "-landmarks"
"""Ends the names of drawings, before the suffix."""


@dataclass(frozen=True)
class FaceSearch:
    """How the faces of a photograph are found: by `analyze`, or else in boxes."""

    network: FaceLandmarker
    boxes: Sequence[Box]
    analyze: FaceAnalyzer | None
    confidence: bool
    detector_note: str = ""
    """Said before the first result, where the user named no detector."""

    def __call__(self, photo: Uint8Array) -> Faces:
        """Find the faces of a ``(H, W, 3)`` uint8 BGR photograph."""
        if self.analyze is not None:
            return self.rated(self.analyze(photo, "bgr"), photo)
        whole = (0.0, 0.0, photo.shape[1], photo.shape[0])
        boxes = [whole if box == WHOLE else box for box in self.boxes]
        return self.rated(read_faces(self.network, photo, boxes, "bgr"), photo)

    def rated(self, faces: Faces, photo: Uint8Array) -> Faces:
        """Add confidences where they are asked for, from a prediction of the mirror image."""
        if not self.confidence or len(faces) == 0:
            return faces
        pair = predict_with_mirror(self.network, photo, faces.boxes, "bgr", faces.rolls)
        return replace(faces, confidences=landmark_confidence(*pair, self.network.contract))


class Photograph(NamedTuple):
    """A photograph among the inputs, and where its drawing goes, relative to the output folder."""

    path: Path
    folder: Path = Path()


def sorted_inputs(inputs: Sequence[Path], out: Path) -> tuple[list[Photograph], list[Path]]:
    """Part photographs, those in folders among them, from videos; raises FaceSetError for a folder without one.

    Drawings that an earlier run left in `out` are no photographs; what else a folder holds is named.
    """
    photos: list[Photograph] = []
    videos: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = [photo for photo in photos_in(path) if not _drawn_before(photo, out)]
            photos += [Photograph(photo, photo.relative_to(path).parent) for photo in found]
            if not found:
                raise FaceSetError(f"{path}: holds only drawings of an earlier run, no photographs")
            note_left_out(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            videos.append(path)
        else:
            photos.append(Photograph(path))
    _check_sources(
        [path for path in inputs if not path.is_dir()], [out / f"{path.stem}{_DRAWN}.mp4" for path in videos]
    )
    return photos, videos


def _check_sources(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    """Refuse to draw over what is still to be read, such as drawings of an earlier run that ``*.png`` names too."""
    given = {path.resolve() for path in sources}
    lost = next((path for path in targets if path.resolve() in given), None)
    if lost is not None:
        raise OutputError(f"{lost} is among the inputs and would be drawn over: leave it out, or give another -o")


def _drawn_before(photo: Path, out: Path) -> bool:
    return photo.stem.endswith(_DRAWN) and out.resolve() in photo.resolve().parents


def _targets(photos: Sequence[Photograph], out: Path) -> list[Path]:
    """Choose the file of each photograph's drawing: `out` itself, or ``<out>/<folder>/<name>-landmarks.png``."""
    if out.suffix.lower() in _PICTURES and not out.is_dir():
        if len(photos) > 1:
            raise OutputError(f"{out} is one file, and there are {len(photos)} photographs: give a folder")
        if out.exists() and photos[0].path.exists() and out.samefile(photos[0].path):
            raise OutputError(f"{out} is the photograph itself: give another file, or a folder")
        return [out]
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is neither a folder nor a .png or .jpg file")
    stems = Counter(photo.folder / photo.path.stem for photo in set(photos))

    def name(photo: Photograph) -> str:
        # a.jpg and a.png of one folder keep their suffixes, to tell the drawings apart.
        own = photo.path.stem if stems[photo.folder / photo.path.stem] == 1 else photo.path.name
        return f"{own}{_DRAWN}.png"

    paths = [out / photo.folder / name(photo) for photo in photos]
    path, uses = Counter(paths).most_common(1)[0]
    if uses > 1:
        raise OutputError(
            f"{uses} photographs would be drawn to {path}: give them different names, or separate folders"
        )
    _check_sources([photo.path for photo in photos], paths)
    return paths


class Prediction:
    """A run over photographs and videos: each is drawn and recorded as soon as its faces are found.

    Files that can't be read are skipped and named; at the end `check_skipped` raises. What was recorded is kept
    however the run ends.
    """

    def __init__(
        self, out: Path, draw: Collection[str], search: FaceSearch, targets: Sequence[str], *, strict: bool
    ) -> None:
        """Begin; `draw` has some of `DRAWABLE`, `targets` the names of record files, ``-`` for standard output.

        Raises:
            OSError: A record file can't be written.
        """
        self._out, self._draw, self._search = out, draw, search
        self._quiet = "-" in targets
        self._records = [RecordFile(target, search.network.contract.landmarks) for target in targets]
        self._files, self._skipped = 0, SkippedFiles(strict=strict)
        self._remark = search.detector_note
        self._videos = set[Path]()

    def __enter__(self) -> "Prediction":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for record in self._records:
            if kind is not None and record.empty:
                record.discard()
            else:
                record.close()

    def photographs(self, photos: Sequence[Photograph]) -> None:
        """Draw photographs.

        Raises:
            OutputError: There is no place for the pictures.
            FaceSetError: One can't be read, and is the only one or `strict`.
        """
        if not photos:
            return
        faceless = list[str]()
        for photo, target in zip(photos, _targets(photos, self._out), strict=True):
            self._files += 1
            try:
                picture = read_photo(photo.path)
                self._check_boxes(photo.path, picture)
                faces = self._search(picture)
            except (FaceSetError, ModelFileError) as error:
                # The latter: the network gave NaN.
                named = error if isinstance(error, FaceSetError) else InputError(f"{photo.path}: {error}")
                self._skip(named, alone=len(photos) == 1)
                continue
            write_picture(target, draw_faces(picture, faces, self._draw))
            self._record(FrameFaces(str(photo.path), faces))
            count = {0: "no face found", 1: "1 face"}.get(len(faces), f"{len(faces)} faces")
            self._say(f"{photo.path} -> {target} ({count})")
            if len(faces) == 0:
                faceless.append(str(photo.path))
        note_faceless(faceless)

    def video(self, source: Path | int, tracker: Callable[[], FaceTracker], most: int | None, *, alone: bool) -> None:
        """Draw a video, or what the camera of a number sees, at most so many frames of it.

        Raises:
            InputError: It can't be read, and is the only one (`alone`) or `strict`.
            OutputError: There is no place for the result.
        """
        target = self._video_target(source)
        self._files += 1
        try:
            opened = VideoSource(source)
            done, shown = self._follow(opened, target, tracker(), most)
            if not done:
                raise InputError(f"{opened.name}: no frame in it")
        except (InputError, ModelFileError) as error:
            self._skip(error if isinstance(error, InputError) else InputError(f"{opened.name}: {error}"), alone=alone)
            return
        for fault in opened.faults:
            note(f"{opened.name}: {fault}")
        self._say(f"{opened.name} -> {target} ({done} frames{'' if shown else ', no face found'})")

    def check_skipped(self) -> None:
        """Raise a ClickException if files were skipped."""
        self._skipped.check(self._files)

    def _check_boxes(self, path: Path, picture: Uint8Array) -> None:
        height, width = picture.shape[:2]
        for x0, y0, x1, y1 in self._search.boxes:
            if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                note(f"{path}: the box {x0:g},{y0:g},{x1:g},{y1:g} lies outside of the picture ({width} x {height})")

    def _follow(self, source: VideoSource, target: Path, tracker: FaceTracker, most: int | None) -> tuple[int, int]:
        """Draw the frames of one video; gives their number, and that of those which show a face."""
        expected = [count for count in (source.length, most) if count is not None]
        done = shown = 0
        try:
            with (
                VideoSink(target, source) as sink,
                progress_bar(source.name, min(expected) if expected else None) as advance,
            ):
                for frame, seconds in source.frames(sink.write_sound):
                    faces = self._search.rated(tracker(frame, seconds, "bgr"), frame)
                    sink.write(draw_faces(frame, faces, self._draw), seconds)
                    self._record(FrameFaces(source.name, faces, done, seconds))
                    done += 1
                    shown += len(faces) > 0
                    advance(1)
                    if done == most:
                        break
        except KeyboardInterrupt:
            note(f"{target}: {done} frames kept")
            raise
        return done, shown

    def _video_target(self, source: Path | int) -> Path:
        if self._out.suffix.lower() == ".mp4":
            if isinstance(source, Path) and self._out.exists() and source.exists() and self._out.samefile(source):
                raise OutputError(f"{self._out} is the video itself: give another file, or a folder")
            return self._out
        if self._out.exists() and not self._out.is_dir():
            raise OutputError(f"{self._out} is neither a folder nor an .mp4 file")
        if self._out.suffix.lower() in _PICTURES and not self._out.is_dir():
            raise OutputError(f"{self._out} would be a picture: give an .mp4 file, or a folder")
        names = (source.stem, source.name) if isinstance(source, Path) else (f"camera{source}",)
        # a.mov and a.mp4 keep their suffixes from the second on, to tell the drawings apart.
        targets = [self._out / f"{name}{_DRAWN}.mp4" for name in names]
        target = next((target for target in targets if target not in self._videos), None)
        if target is None:
            raise OutputError(f"{targets[-1]} is another video's in this run: give {source} separately, another -o")
        self._videos.add(target)
        return target

    def _record(self, found: FrameFaces) -> None:
        for record in self._records:
            record.add(found)

    def _skip(self, error: Exception, *, alone: bool) -> None:
        if alone:
            raise error
        self._skipped(error)

    def _say(self, line: str) -> None:
        if self._remark:
            note(self._remark)
            self._remark = ""
        click.echo(line, err=self._quiet)
