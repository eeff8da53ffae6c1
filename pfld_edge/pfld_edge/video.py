"""Frames of videos and cameras in, drawn frames out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge.errors import InputError, OutputError

__all__ = ["VIDEO_SUFFIXES", "VideoSink", "VideoSource", "video_sink"]

Frame = NDArray[np.uint8]

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})

_USUAL_RATE = 30.0


class VideoSource:
    """An open video file or camera.

    Attributes:
        name: For people and records.
        fps: Frames a second; 30 where the file doesn't say.
        length: Number of frames, or None where nobody knows.
    """

    def __init__(self, source: Path | int) -> None:
        """Open a file, or the camera of a number.

        Raises:
            InputError: It can't be opened, or holds no frame.
        """
        # Its libraries would print what `InputError` says; -8 is FFmpeg's word for quiet.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        if isinstance(source, Path) and not source.is_file():
            raise InputError(f"{source}: no such video")
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            fault = "can't be opened, is it there?" if isinstance(source, int) else "not a video that can be read"
            raise InputError(f"{self.name}: {fault}")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if 0 < rate < 1000 else _USUAL_RATE
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if isinstance(source, Path) else 0
        self.length = count if count > 0 else None

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames, ``(H, W, 3)`` uint8 BGR, once."""
        try:
            while True:
                more, frame = self._capture.read()
                if not more:
                    return
                yield np.asarray(frame, np.uint8)
        finally:
            self._capture.release()


class VideoSink:
    """Writes an MP4, and keeps what was written however it ends."""

    def __init__(self, path: Path, fps: float) -> None:
        """Say where, and how fast it plays."""
        self._path, self._fps = path, fps
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.mp4")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: Frame) -> None:
        """Append a ``(H, W, 3)`` uint8 BGR frame; all take the first one's size.

        Raises:
            OutputError: The file can't be written.
        """
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._size = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, self._size)
            if not self._writer.isOpened():
                raise OutputError(f"{self._path}: an MP4 can't be written there")
        same = (frame.shape[1], frame.shape[0]) == self._size
        self._writer.write(frame if same else cv2.resize(frame, self._size))

    def close(self) -> bool:
        """Finish the file; False where no frame came."""
        if self._writer is None:
            return False
        self._writer.release()
        self._writer = None
        self._partial.replace(self._path)
        return True


@contextmanager
def video_sink(path: Path, fps: float) -> Iterator[VideoSink]:
    """Open a sink that is closed in the end, after an interruption too."""
    sink = VideoSink(path, fps)
    try:
        yield sink
    finally:
        sink.close()
