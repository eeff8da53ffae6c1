"""Download of published detector files: on request, complete, and checked by SHA-256."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pfld_edge_runtime import (
    DETECTOR_FILES,
    DetectorError,
    DownloadError,
    detector_folder,
    download_detector,
    open_detector,
)

PUBLISHED = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    """Serves `PUBLISHED`, and counts how often."""

    calls: list[str]
    answer: bytes

    def do_GET(self) -> None:
        self.calls.append(self.path)
        self.send_response(404 if "missing" in self.path else 200)
        self.send_header("Content-Length", str(len(PUBLISHED)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Stay quiet."""


@pytest.fixture
def handler() -> type[Handler]:
    """What the server does; the tests change it."""
    return type("Own", (Handler,), {"calls": [], "answer": PUBLISHED})


@pytest.fixture
def server(handler: type[Handler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A local server that stands for the public addresses; the cache folder is the test's own."""
    with HTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{running.server_port}"
        entry = replace(
            DETECTOR_FILES["yunet"],
            url=f"{address}/yunet.onnx",
            sha256=hashlib.sha256(PUBLISHED).hexdigest(),
            size=len(PUBLISHED),
        )
        monkeypatch.setitem(DETECTOR_FILES, "yunet", entry)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "*")
        yield address
        running.shutdown()
        thread.join()


def test_a_download_is_the_published_file(server: str, tmp_path: Path) -> None:
    assert server
    parts: list[int] = []
    path = download_detector("yunet", advance=parts.append)
    assert path == tmp_path / "cache/pfld-edge/detectors/yunet_n_dynamic.onnx"
    assert path.read_bytes() == PUBLISHED
    assert sum(parts) == len(PUBLISHED)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_here_is_not_downloaded_again(server: str, handler: type[Handler]) -> None:
    assert server
    assert download_detector("yunet") == download_detector("yunet")
    assert handler.calls == ["/yunet.onnx"]


def test_a_damaged_file_is_replaced(server: str) -> None:
    assert server
    path = download_detector("yunet")
    path.write_bytes(PUBLISHED[:-1])
    with pytest.raises(DetectorError, match=r"is not the published yunet_n_dynamic\.onnx: download it again"):
        open_detector("yunet")
    assert download_detector("yunet").read_bytes() == PUBLISHED


@pytest.mark.parametrize("answer", [PUBLISHED[:-1] + b"!", PUBLISHED[:1000], b""], ids=["changed", "cut off", "empty"])
def test_another_file_is_refused_and_the_old_one_kept(
    server: str, handler: type[Handler], tmp_path: Path, answer: bytes
) -> None:
    assert server
    old = tmp_path / "yunet_n_dynamic.onnx"
    old.write_bytes(b"old")
    handler.answer = answer
    with pytest.raises(DownloadError, match="gave another file than was published"):
        download_detector("yunet", tmp_path)
    assert old.read_bytes() == b"old"
    assert [path for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_longer_answer_is_never_read_past_the_size(
    server: str, handler: type[Handler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server
    handler.answer = PUBLISHED
    monkeypatch.setitem(DETECTOR_FILES, "yunet", replace(DETECTOR_FILES["yunet"], size=100))
    parts: list[int] = []
    with pytest.raises(DownloadError, match="100 of 100 bytes"):
        download_detector("yunet", tmp_path, parts.append)
    assert sum(parts) == 100


@pytest.mark.parametrize("address", ["{server}/missing", "http://127.0.0.1:1/yunet.onnx", "http://none.invalid/x"])
def test_without_an_answer_the_sentence_says_which_file_goes_where(
    server: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = address.format(server=server)
    monkeypatch.setitem(DETECTOR_FILES, "yunet", replace(DETECTOR_FILES["yunet"], url=url))
    with pytest.raises(DownloadError) as caught:
        download_detector("yunet", tmp_path)
    assert str(caught.value).startswith(f"{url} could not be fetched")
    assert str(caught.value).endswith(f"put it at {tmp_path / 'yunet_n_dynamic.onnx'}")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_opening_never_downloads(server: str, handler: type[Handler]) -> None:
    assert server
    with pytest.raises(DetectorError, match=r"'yunet' isn't here yet: run `pfld-edge detector download yunet`"):
        open_detector("yunet")
    assert handler.calls == []


@pytest.mark.parametrize("name", ["blazeface", "", "YuNet"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(DetectorError, match=r"known: bundled, yunet, scrfd, scrfd-2\.5g, ultraface, or the path"):
        open_detector(name)
    with pytest.raises(DetectorError, match="unknown detector"):
        download_detector(name)


@pytest.mark.parametrize("given", ["", "relative/cache"])
def test_a_relative_cache_folder_is_ignored_as_xdg_says(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert detector_folder() == Path.home() / ".cache/pfld-edge/detectors"


def test_every_address_is_pinned_to_a_commit_and_encrypted() -> None:
    for entry in DETECTOR_FILES.values():
        assert entry.url.startswith("https://")
        assert entry.url.endswith(f"/{entry.file}")
        assert any(len(part) == 40 and set(part) <= set("0123456789abcdef") for part in entry.url.split("/"))
        assert len(bytes.fromhex(entry.sha256)) == 32
