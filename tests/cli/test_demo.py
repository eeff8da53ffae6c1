"""The demo's page finds in Chromium what the Python runtime finds."""

import json
import queue
import shutil
import subprocess
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from pfld_edge.cli import run
from pfld_edge.demo.page import PageHandler, open_server
from pfld_edge_calib import portraits, read_photo
from pfld_edge_runtime import BUNDLED_MODEL, FaceAnalyzer, FaceLandmarker

CHROMIUM = shutil.which("chromium") or ""
PROBE = """<iframe id=f src="index.html"></iframe><script>
const timer = setInterval(() => {
  const found = document.getElementById("f").contentWindow.found;
  if (found) { clearInterval(timer); fetch("/found", {method: "POST", body: JSON.stringify(found)}); }
}, 100)</script>"""


def test_what_the_page_cannot_use_is_one_line(
    tmp_path: Path, shared_folder: Path | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = () if shared_folder is None else ("yunet_n_320_320.onnx", "version-RFB-320.onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    site = ["--export", str(tmp_path / "site")]
    model = str(BUNDLED_MODEL)
    cases: list[tuple[list[str], str]] = [
        ([str(tmp_path / "junk.onnx"), *site], "is not an ONNX file"),
        ([model, "--detector", model, *site], "is not a detector"),
        ([model, "--detector", "yunnet", *site], "unknown detector 'yunnet'; known: bundled, yunet"),
        ([model, "--detector", "yunet", *site], "run `pfld-edge detector download yunet`"),
        *(
            (
                [model, "--detector", f"{shared_folder}/models/detectors/{file}", *site],
                "needs the bundled detector, or a YuNet file of free input size",
            )
            for file in others
        ),
        ([model, "--onnxruntime-web", str(tmp_path), *site], "give the folder of onnxruntime-web"),
        ([model, "--onnxruntime-web", str(tmp_path / "junk.onnx"), *site], "SHA-512 differs"),
    ]
    for arguments, says in cases:
        assert run(["demo", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
        assert not (tmp_path / "site").exists()


def test_a_port_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    with open_server(tmp_path, "127.0.0.1", 0) as first:
        port = first.server_address[1]
        with open_server(tmp_path, "127.0.0.1", port) as second:
            assert second.server_address[1] != port


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_the_page_finds_what_python_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site"
    if run(["demo", "--export", str(site)]):
        said = capsys.readouterr().err
        assert "npm" in said  # nothing else may keep the page from being written
        pytest.skip(f"onnxruntime-web can't be had: {said}")
    left, right = (read_photo(face.image) for face in portraits())
    middle = (right.shape[1] / 2, right.shape[0] / 2)
    right = cv2.warpAffine(right, cv2.getRotationMatrix2D(middle, -40, 1), right.shape[1::-1])
    photo = np.zeros((max(len(left), len(right)), left.shape[1] + right.shape[1], 3), np.uint8)
    photo[: len(left), : left.shape[1]], photo[: len(right), left.shape[1] :] = left, right
    cv2.imwrite(str(site / "portrait.jpg"), photo, [cv2.IMWRITE_JPEG_QUALITY, 95])
    (site / "probe.html").write_text(PROBE, encoding="utf-8")
    answers: queue.Queue[bytes] = queue.Queue()

    class Handler(PageHandler):
        def do_POST(self) -> None:  # noqa: N802 - the base class's way of naming
            answers.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

    with open_server(site, "127.0.0.1", 0, Handler) as server, (tmp_path / "log").open("w") as log:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        more = ["--enable-logging=stderr", "--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}"]
        address = f"http://127.0.0.1:{server.server_address[1]}/probe.html"
        browser = subprocess.Popen([CHROMIUM, *options, *more, address], stderr=log)
        try:
            found = json.loads(answers.get(timeout=300))  # a browser starts slowly on a busy machine
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    drawn = read_photo(site / "portrait.jpg")
    boxes, rolls = (np.array([box[:4] for box in found["boxes"]]), [(*box, 0)[4] for box in found["boxes"]])
    expected = np.sort(FaceAnalyzer()(drawn, "bgr").boxes, axis=0)
    assert len(expected) == 2
    assert max(np.abs(rolls)) > 20
    # The browser scales pictures otherwise.
    assert np.abs(np.sort(boxes, axis=0) - expected).max() < 0.1 * (expected[:, 2] - expected[:, 0]).min()
    landmarks = np.reshape(found["landmarks"], (2, 98, 2))
    assert np.abs(landmarks - FaceLandmarker()(drawn, boxes, "bgr", rolls)).max() < 0.5
    assert "CONSOLE" not in (tmp_path / "log").read_text(encoding="utf-8")
