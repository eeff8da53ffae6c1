"""Frames of videos and cameras in, drawn frames and the original sound out."""

import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.error import FFmpegError

from pfld_edge.console import InputError, OutputError
from pfld_edge_calib.photo import opencv_log
from pfld_edge_runtime.arrays import Uint8Array

VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".webm",
        ".wmv",
    ]
)

_USUAL_RATE = 30.0
_CLOCK = Fraction(1, 90_000)
"""Time base of written frames: that of MPEG systems, finer than any frame rate."""
_SOUND_IN_MP4 = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
"""Codecs of sound that are copied; others are encoded as AAC."""


class VideoSource:
    """An open video file or camera.

    Attributes:
        name: For people and records.
        fps: Average frames a second; 30 where the file doesn't say.
        length: Number of frames, by the file's index or its duration; None where neither is known.
        sound: The file's audio stream; None where it has none.
        faults: What was wrong with the file, a sentence each; known once all frames were given.

    Raises:
        InputError: The file, or the camera of that number, can't be opened, or holds no picture that can be decoded.
    """

    def __init__(self, source: Path | int) -> None:
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self.fps = _USUAL_RATE
        self.length: int | None = None
        self.sound: av.AudioStream | None = None
        self.faults: list[str] = []
        self._camera: cv2.VideoCapture | None = None
        if isinstance(source, int):
            opencv_log.setLogLevel(0)
            self._camera = cv2.VideoCapture(source)
            if not self._camera.isOpened():
                raise InputError(f"{self.name}: can't be opened, is it there?")
        else:
            self._open(source)

    def _open(self, source: Path) -> None:
        if not source.is_file():
            raise InputError(f"{source}: no such video")
        try:
            self._container = av.open(str(source), metadata_errors="replace")
        except (FFmpegError, OSError) as error:
            raise InputError(f"{source}: not a video that can be read") from error
        video = self._container.streams.best("video")
        if not isinstance(video, av.VideoStream):
            raise InputError(f"{source}: holds no video")
        if video.codec_context is None:
            raise InputError(f"{source}: no decoder for its video is here")
        sound = self._container.streams.best("audio")
        self._video, self.sound = video, sound if isinstance(sound, av.AudioStream) else None
        video.thread_type = "AUTO"
        rate = float(video.average_rate or 0)
        self.fps = rate if 0 < rate < 1000 else _USUAL_RATE
        seconds = (self._container.duration or 0) / av.time_base
        self.length = video.frames or round(seconds * self.fps) or None

    def frames(self, sound: Callable[[Any], object] | None = None) -> Iterator[tuple[Uint8Array, float]]:
        """Give the frames once, in the order in which they are shown, each with its time.

        Frames are ``(H, W, 3)`` uint8 BGR with square pixels, turned upright as the file says. Times are seconds from
        the start of the file or the opening of the camera, and always increase. `sound` is called with each packet of
        the audio stream, its times counted from the file's start.
        """
        return self._of_file(sound) if self._camera is None else self._of_camera(self._camera)

    def _of_camera(self, camera: cv2.VideoCapture) -> Iterator[tuple[Uint8Array, float]]:
        start = time.monotonic()
        try:
            while (read := camera.read())[0]:
                yield np.asarray(read[1], np.uint8), time.monotonic() - start
        finally:
            camera.release()

    def _of_file(self, sound: Callable[[Any], object] | None) -> Iterator[tuple[Uint8Array, float]]:
        start = (self._container.start_time or 0) / av.time_base
        now, given, hidden, damaged = -1.0, 0, 0, 0
        streams = [self._video, *([] if self.sound is None or sound is None else [self.sound])]
        with self._container:
            for packet in self._packets(streams):
                if packet.stream is not self._video:
                    if sound is not None and packet.dts is not None:
                        offset = round(start / packet.time_base)
                        packet.dts -= offset
                        packet.pts = packet.dts if packet.pts is None else packet.pts - offset
                        # What is before the start only prepares a decoder.
                        if packet.dts >= 0:
                            sound(packet)
                    continue
                # What an edit list leaves out is in the file's count and is not shown.
                hidden += packet.is_discard
                try:
                    frames = packet.decode()
                except FFmpegError:
                    damaged += 1
                    continue
                for frame in frames:
                    said = None if frame.time is None else frame.time - start
                    now = said if said is not None and said > now else max(now, 0.0) + (1 / self.fps if given else 0)
                    given += 1
                    yield self._upright(frame), now
        if damaged:
            self.faults.append(f"{damaged} damaged packets could not be decoded")
        if given + hidden < self._video.frames:
            self.faults.append(f"the file announces {self._video.frames} frames, {given} could be read")

    def _packets(self, streams: list[Any]) -> Iterator[Any]:
        """Give the packets until the file ends or breaks off."""
        try:
            yield from self._container.demux(streams)
        except FFmpegError as error:
            self.faults.append(f"breaks off: {error.strerror}")

    def _upright(self, frame: av.VideoFrame) -> Uint8Array:
        """Decode one frame to BGR with square pixels, turned by the file's display matrix."""
        picture = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
        aspect = self._video.sample_aspect_ratio
        if aspect is not None and aspect > 0 and aspect != 1:
            width = max(1, round(frame.width * aspect))
            picture = np.asarray(cv2.resize(picture, (width, frame.height), interpolation=cv2.INTER_LINEAR), np.uint8)
        return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


class VideoSink:
    """Writes an MP4 (H.264), which replaces an older file once it is closed.

    Until then it is ``<name>.partial.mp4`` beside it, in fragments of a second: what a killed run leaves can be played.
    """

    def __init__(self, path: Path, source: VideoSource) -> None:
        self._path, self._partial = path, path.with_suffix(".partial.mp4")
        self._fps, self._sound = source.fps, source.sound
        self._container: Any = None
        self._video: Any = None
        self._audio: Any = None
        self._early: list[Any] = []
        self._size, self._last = (0, 0), -1

    def __enter__(self) -> "VideoSink":
        return self

    def __exit__(self, *_: object) -> None:
        # After an error or an interruption too; without a frame there is no file.
        if self._container is None:
            return
        self._mux(self._video.encode(None))
        if self._audio is not None and not self._copies_sound():
            self._mux(self._audio.encode(None))
        self._container.close()
        self._container = None
        self._partial.replace(self._path)

    def write(self, frame: Uint8Array, seconds: float) -> None:
        """Append a frame, ``(H, W, 3)`` uint8 BGR, brought to the first one's size and shown later than the last.

        Raises:
            OutputError: The file can't be written.
        """
        if self._container is None:
            self._open(frame.shape[1], frame.shape[0])
        if (frame.shape[1], frame.shape[0]) != self._size:
            frame = np.asarray(cv2.resize(frame, self._size), np.uint8)
        shown = av.VideoFrame.from_ndarray(frame, format="bgr24")
        self._last = max(round(seconds / _CLOCK), self._last + 1)
        shown.pts, shown.time_base = self._last, _CLOCK
        self._mux(self._video.encode(shown))

    def write_sound(self, packet: Any) -> None:  # noqa: ANN401 - PyAV's packet, of an audio stream
        """Append a packet of the source's sound; raises as `write` does."""
        if self._container is None:
            # The file begins with the first frame, which says its size.
            self._early.append(packet)
        elif self._copies_sound():
            packet.stream = self._audio
            self._mux([packet])
        else:
            for part in packet.decode():
                self._mux(self._audio.encode(part))

    def _copies_sound(self) -> bool:
        return self._sound is not None and self._sound.codec_context.name in _SOUND_IN_MP4

    def _open(self, width: int, height: int) -> None:
        options = {"movflags": "+hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._partial), "w", options=options)
            rate = Fraction(self._fps).limit_denominator(1001)
            # No B-frames and a short look-ahead: little is lost when the run is killed.
            speed = {"crf": "20", "preset": "veryfast", "bf": "0", "rc-lookahead": "10"}
            self._video = self._container.add_stream("libx264", rate=rate, options=speed)
        except (FFmpegError, OSError) as error:
            raise OutputError(f"{self._path}: an MP4 can't be written there ({error.strerror})") from error
        self._size = self._video.width, self._video.height = width, height
        # 4:2:0 halves both sides; odd ones need colour in full resolution.
        self._video.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        self._video.time_base = self._video.codec_context.time_base = _CLOCK
        if self._copies_sound():
            self._audio = self._container.add_stream_from_template(self._sound)
        elif self._sound is not None:
            self._audio = self._container.add_stream("aac", rate=self._sound.codec_context.sample_rate)
        for packet in self._early:
            self.write_sound(packet)
        self._early = []

    def _mux(self, packets: Any) -> None:  # noqa: ANN401 - PyAV's packets
        try:
            self._container.mux(packets)
        except FFmpegError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from error
