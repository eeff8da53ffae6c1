"""Frames of videos and cameras in, drawn frames and the original sound out."""

import errno
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
_LONGEST_GAP = 3600.0
"""Seconds from a frame to the next, or to the sound beside it, beyond which a time is damage. libavformat ends the
process where it should write gaps of some hours."""
_SOUND_IN_MP4 = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
"""Codecs of sound that are copied; others are encoded as AAC."""
_FASTEST_AAC = 96_000
"""Samples a second (ISO/IEC 14496-3, table 1.18)."""
_LARGEST_ERRNO = 0xFFFF
"""The system's errors, a full disk say, have numbers; FFmpeg's own have tags of four letters."""
_LARGEST_SIDE = 16_384
"""Pixels that libx264 encodes."""


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
        if not source.exists():  # a pipe is a video too
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
        self.fps = rate if 0.01 < rate < 1000 else _USUAL_RATE
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
                        if packet.pts * packet.time_base > max(now, 0) + _LONGEST_GAP:
                            damaged += 1
                        elif packet.dts >= 0:  # what is before the start only prepares a decoder
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
                    if said is None or not now < said < now + _LONGEST_GAP:
                        said = max(now, 0.0) + (1 / self.fps if given else 0)
                    now = said
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
        except IndexError:  # PyAV's, of a stream that damaged data announce
            self.faults.append("breaks off: a packet of a stream that the file's beginning doesn't name")

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
        self._source, self._sound = source, source.sound
        self._damaged = 0  # packets of sound
        self._container: Any = None
        self._video: Any = None
        self._audio: Any = None
        self._early: list[Any] = []
        self._held: Any = None  # the last frame, until the next one says how long it is shown
        self._resampler: Any = None
        self._form: tuple[object, ...] | None = None  # of the sound that the resampler takes
        self._size = (0, 0)

    def __enter__(self) -> "VideoSink":
        return self

    def __exit__(self, *_: object) -> None:
        # After an error or an interruption too; without a frame there is no file.
        if self._container is None:
            return
        container, self._container = self._container, None
        with container:
            if self._held is not None:
                self._mux_held(container, round(1 / self._source.fps / _CLOCK))
            self._mux(container, self._video, None)
            if self._audio is not None and not self._copies_sound():
                self._mux_sound(container, None)
        self._partial.replace(self._path)
        if self._damaged:
            self._source.faults.append(f"{self._damaged} damaged packets of its sound are left out")

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
        shown.pts, shown.time_base = round(seconds / _CLOCK), _CLOCK
        if self._held is not None:
            shown.pts = max(shown.pts, self._held.pts + 1)
            self._mux_held(self._container, shown.pts - self._held.pts)
        self._held = shown

    def write_sound(self, packet: Any) -> None:  # noqa: ANN401 - PyAV's packet, of an audio stream
        """Append a packet of the source's sound, or count it where it is damaged; raises as `write` does."""
        if self._container is None:
            # The file begins with the first frame, which says its size.
            self._early.append(packet)
            return
        self._mux_sound(self._container, packet)

    def _mux_sound(self, container: Any, packet: Any) -> None:  # noqa: ANN401 - PyAV's
        """Write a packet of the source's sound, or with None what the encoder still holds."""
        try:
            if self._copies_sound():
                packet.stream = self._audio
                container.mux([packet])
            else:
                for part in self._converted([None] if packet is None else packet.decode()):
                    container.mux(self._audio.encode(part))
        except FFmpegError as error:
            if error.errno != errno.EINVAL and (error.errno or 0) <= _LARGEST_ERRNO:
                raise OutputError(f"{self._path}: {error.strerror}") from error
            self._damaged += 1

    def _converted(self, frames: list[Any]) -> Iterator[Any]:
        """Give sound in the encoder's format. Broadcasts and damaged files change theirs on the way."""
        encoder = self._audio.codec_context
        for frame in frames:
            form = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
            if form != self._form:
                if self._form is not None:
                    yield from self._resampler.resample(None)
                if form is not None:
                    self._resampler = av.AudioResampler(encoder.format, encoder.layout, encoder.sample_rate)
                self._form = form
            yield from [None] if frame is None else self._resampler.resample(frame)

    def _copies_sound(self) -> bool:
        return self._sound is not None and self._sound.codec_context.name in _SOUND_IN_MP4

    def _open(self, width: int, height: int) -> None:
        if max(width, height) > _LARGEST_SIDE:
            raise OutputError(
                f"{self._path}: frames of {width} x {height} pixels can't be written, only up to {_LARGEST_SIDE} a side"
            )
        options = {"movflags": "+hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._partial), "w", options=options)
            rate = Fraction(self._source.fps).limit_denominator(1001)
            # No B-frames and a short look-ahead: little is lost when the run is killed.
            speed = {"crf": "20", "preset": "veryfast", "bf": "0", "rc-lookahead": "10", "flags": "+frame_duration"}
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
            self._audio = self._container.add_stream(
                "aac", rate=min(self._sound.codec_context.sample_rate, _FASTEST_AAC)
            )
        for packet in self._early:
            self.write_sound(packet)
        self._early = []

    def _mux_held(self, container: Any, duration: int) -> None:  # noqa: ANN401 - PyAV's
        """Write the last frame. Where sound ends a fragment, libavformat takes its duration for the next one's time."""
        self._held.duration = duration
        self._mux(container, self._video, self._held)

    def _mux(self, container: Any, stream: Any, frame: Any) -> None:  # noqa: ANN401 - PyAV's
        """Encode a frame, or with None what the encoder still holds, and write it."""
        try:
            container.mux(stream.encode(frame))
        except FFmpegError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from error
