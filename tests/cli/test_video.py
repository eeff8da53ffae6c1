"""Videos are read and written in their own time, shape and sound."""

import os
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfld_edge.console import InputError, OutputError
from pfld_edge.video import VideoSink, VideoSource
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

RATE = 44_100


def picture(width: int = 64, height: int = 48, shade: int = 0) -> Uint8Array:
    """A picture whose four corners differ."""
    image = np.full((height, width, 3), 60 + shade, np.uint8)
    image[: height // 2, : width // 2] = (0, 0, 250)
    image[height // 2 :, : width // 2] = (0, 250, 0)
    return image


def tone(seconds: float) -> Float32Array:
    return np.sin(np.arange(int(RATE * seconds)) * 0.06).astype(np.float32)[None] / 2


def write_clip(
    path: Path,
    times: list[float],
    *,
    codec: str = "mpeg4",
    size: tuple[int, int] = (64, 48),
    aspect: Fraction | None = None,
    sound: str | None = None,
    sound_rate: int = RATE,
) -> Path:
    """Write frames at these times, in seconds, and sound from the first to the last."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options={"q": "2"})
        video.width, video.height = size
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.time_base = video.time_base = Fraction(1, 1000)
        if codec == "mjpeg":
            video.codec_context.time_base = video.time_base = Fraction(1, 25)
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        audio = None if sound is None else container.add_stream(sound, rate=sound_rate)
        for index, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(*size, shade=index % 190), format="bgr24")
            frame.time_base = video.codec_context.time_base
            frame.pts = round(seconds / frame.time_base)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            samples = av.AudioFrame.from_ndarray(tone(times[-1] - times[0] + 0.1), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = RATE, round(times[0] * RATE), Fraction(1, RATE)
            container.mux(audio.encode(samples))
            container.mux(audio.encode(None))
    return path


def drawn(source: Path, target: Path) -> list[float]:
    """Copy a video through `VideoSource` and `VideoSink`; gives the times of its frames."""
    opened, times = VideoSource(source), []
    with VideoSink(target, opened) as sink:
        for frame, seconds in opened.frames(sink.write_sound):
            sink.write(frame, seconds)
            times.append(seconds)
    return times


def times_in(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time or 0) for frame in container.decode(video=0)]


def seconds_of_sound(path: Path) -> float:
    with av.open(str(path)) as container:
        return sum(frame.samples for frame in container.decode(audio=0)) / RATE


def sound_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_frames_keep_their_own_times(tmp_path: Path) -> None:
    times = [0, 0.04, 0.5, 0.54, 2.9, 3.0]
    assert drawn(write_clip(tmp_path / "a.mkv", times), tmp_path / "out.mp4") == pytest.approx(times)
    assert times_in(tmp_path / "out.mp4") == pytest.approx(times, abs=1e-4)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".mp4"] == ["out.mp4"]


@pytest.mark.parametrize(
    ("name", "frames", "last"),
    [("variable_frame_rate.mkv", 56, 6.8), ("av1.mp4", 12, 11 / 30), ("truncated.avi", 1, 0)],
)
def test_files_from_bug_reports_are_read(shared: Path, name: str, frames: int, last: float, tmp_path: Path) -> None:
    times = drawn(shared / "cases" / name, tmp_path / "out.mp4")
    assert (len(times), times[-1]) == (frames, pytest.approx(last))
    assert times_in(tmp_path / "out.mp4") == pytest.approx(times, abs=1e-4)


def test_a_file_that_ends_too_early_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", [index / 25 for index in range(10)], codec="mjpeg")
    data = path.read_bytes()  # its frames begin behind half of it where one core encodes
    path.write_bytes(data[: len(data) * 3 // 4])
    opened = VideoSource(path)
    given = len(list(opened.frames()))
    assert 0 < given < 10
    assert opened.faults[-1] == f"the file announces 10 frames, {given} could be read"


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path) -> None:
    ((frame, _),) = VideoSource(write_clip(tmp_path / "a.mkv", [0], aspect=Fraction(3, 2))).frames()
    assert frame.shape == (48, 96, 3)


def test_a_frame_stands_as_players_show_it(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [0, 0.04])
    data, one = path.read_bytes(), (1).to_bytes(2, "big") + bytes(2)
    matrix = data.index(b"tkhd") + 4 + 40
    minus = (0xFFFF0000).to_bytes(4, "big")
    # ISO/IEC 14496-12, 6.2.2: a b u c d v x y w; this one turns a quarter clockwise, as phones write it.
    turned = bytes(4) + one + bytes(4) + minus + bytes(8) + (48 << 16).to_bytes(4, "big") + bytes(4)
    path.write_bytes(data[:matrix] + turned + data[matrix + 32 :])
    capture = cv2.VideoCapture(str(path))
    more, expected = capture.read()
    assert more
    frame, _ = next(iter(VideoSource(path).frames()))
    assert frame.shape == expected.shape == (64, 48, 3)
    assert np.abs(frame.astype(int) - expected).max() < 12


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    drawn(write_clip(tmp_path / "a.mkv", [0, 0.04], size=(81, 61)), tmp_path / "out.mp4")
    more, frame = cv2.VideoCapture(str(tmp_path / "out.mp4")).read()
    assert more
    assert frame.shape == (61, 81, 3)


def test_sound_is_copied(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [index / 25 for index in range(50)], sound="aac")
    drawn(path, tmp_path / "out.mp4")
    before, after = sound_packets(path), sound_packets(tmp_path / "out.mp4")
    # The first packet may be left out: it only prepares the decoder.
    assert after in (before, before[1:])


def test_sound_that_mp4_does_not_hold_is_encoded(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [index / 25 for index in range(50)], sound="pcm_s16le")
    drawn(path, tmp_path / "out.mp4")
    assert seconds_of_sound(tmp_path / "out.mp4") == pytest.approx(seconds_of_sound(path), abs=0.1)


def test_sound_of_more_samples_a_second_than_aac_holds_is_resampled(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        audio = container.add_stream("pcm_s16le", rate=192_000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 192_000), np.int16), format="s16", layout="stereo")
        samples.sample_rate, samples.pts = 192_000, 0
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(), format="bgr24")))
        container.mux([*video.encode(None), *audio.encode(samples), *audio.encode(None)])
    assert len(drawn(tmp_path / "a.mov", tmp_path / "out.mp4")) == 25
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0)) == pytest.approx(
            1, abs=0.1
        )


def test_sound_that_changes_its_format_on_the_way_is_kept(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "a.ts", [index / 25 for index in range(50)], sound="mp2")
    second = write_clip(tmp_path / "b.ts", [2 + index / 25 for index in range(50)], sound="mp2", sound_rate=48_000)
    with (tmp_path / "c.ts").open("wb") as file:
        file.write(first.read_bytes() + second.read_bytes())
    assert len(drawn(tmp_path / "c.ts", tmp_path / "out.mp4")) > 90
    assert seconds_of_sound(tmp_path / "out.mp4") == pytest.approx(4, abs=0.3)


@settings(max_examples=8)
@given(gaps=st.lists(st.integers(1, 60), min_size=20, max_size=80))
def test_irregular_frames_beside_sound_keep_their_times(
    gaps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Fragments of the file end at a second of either stream, whatever is shown then.
    folder = tmp_path_factory.mktemp("clip")
    path = write_clip(folder / "a.mkv", list(np.cumsum(gaps) / 100), sound="aac")
    times = drawn(path, folder / "out.mp4")
    assert np.diff(times_in(folder / "out.mp4"))[1:] == pytest.approx(np.diff(times)[1:], abs=1e-4)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mpg"])
@pytest.mark.parametrize("seed", range(4))
def test_damaged_sound_and_times_leave_a_video_that_plays(tmp_path: Path, name: str, seed: int) -> None:
    sound = "aac" if name == "a.ts" else "mp2"
    path = write_clip(tmp_path / name, [index / 25 for index in range(50)], codec="mpeg4", sound=sound)
    data, random = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in random.integers(len(data) // 4, len(data), len(data) // 150):
        data[place] = random.integers(256)
    path.write_bytes(data)
    times = drawn(path, tmp_path / "out.mp4")
    # Where sound is encoded, its encoder's delay comes before all.
    assert np.diff(times_in(tmp_path / "out.mp4"))[1:] == pytest.approx(np.diff(times)[1:], abs=1e-4)
    assert times == sorted(times)


def test_a_time_hours_ahead_is_taken_for_damage(tmp_path: Path) -> None:
    # libavformat would end the process where it writes the gap.
    path = write_clip(tmp_path / "a.mkv", [0, 0.04, 90_000, 90_000.04], codec="ffv1")
    assert drawn(path, tmp_path / "out.mp4") == pytest.approx([0, 0.04, 0.08, 0.12], abs=0.02)


def test_frames_that_no_mp4_holds_are_refused_by_their_size(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", [0], codec="mjpeg", size=(16_400, 16))
    with pytest.raises(OutputError, match=r"out\.mp4: frames of 16400 x 16 pixels can't be written"):
        drawn(path, tmp_path / "out.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["a.avi"]


def test_what_a_killed_run_leaves_can_be_played(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from types import SimpleNamespace\n"
        "from pfld_edge.video import VideoSink\n"
        "sink = VideoSink(Path('out.mp4'), SimpleNamespace(fps=30.0, sound=None))\n"
        "for index in range(10**9):\n"
        "    sink.write(np.full((48, 64, 3), index % 250, np.uint8), index / 30)\n"
        "    if index == 300: print('written', flush=True)\n"
        "    if index == 400: sys.stdin.read()\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "written\n"
    run.kill()
    run.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial.mp4"]
    assert len(times_in(tmp_path / "out.partial.mp4")) > 200


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [0])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/out\.mp4"):
        drawn(path, tmp_path / "file/out.mp4")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes with a name in the file system are Unix's")
def test_a_named_pipe_is_a_video(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", [0, 0.1, 0.2])
    os.mkfifo(tmp_path / "pipe.mkv")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe.mkv").write_bytes(whole.read_bytes()))
    writer.start()
    assert len(list(VideoSource(tmp_path / "pipe.mkv").frames())) == 3
    writer.join()


def test_a_file_without_pictures_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        audio = container.add_stream("aac", rate=RATE)
        samples = av.AudioFrame.from_ndarray(tone(1), format="fltp", layout="mono")
        samples.sample_rate = RATE
        container.mux(audio.encode(samples))
        container.mux(audio.encode(None))
    with pytest.raises(InputError, match="holds no video"):
        VideoSource(tmp_path / "a.mkv")


def test_a_cameras_frames_carry_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        def __init__(self, _number: int) -> None:
            self.left = 3

        def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
            return True

        def read(self) -> tuple[bool, Uint8Array]:
            self.left -= 1
            return self.left >= 0, picture()

        def release(self) -> None:
            pass

    clock = iter([100.0, 100.25, 100.5, 101.5, 102])
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert [seconds for _, seconds in VideoSource(0).frames()] == [0.25, 0.5, 1.5]
