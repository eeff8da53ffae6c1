"""The HTML report: loads nothing, believes no name, and a browser has nothing to complain of."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import cv2
import onnx
import pytest

from pfld_edge.cli import run
from pfld_edge_calib import PORTRAITS
from pfld_edge_runtime import FAST_MODEL

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/pfld-edge-s.pth"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
HOSTILE = "<img src=x onerror=alert(1)>&\"'$^$.onnx"
VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Checks that what is opened is closed, and collects what is read or loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a checkpoint and on its INT8 file under a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    model = onnx.load(FAST_MODEL)
    onnx.save(model, folder / HOSTILE.replace("/", ""))
    data = ["--data", str(PORTRAITS / "landmarks.csv")]
    out = folder / "report.html"
    arguments = ["verify", str(CHECKPOINT), str(folder / HOSTILE), *data, "--max-drift", "1%", "--report", str(out)]
    more = ["--robustness-plot", str(folder / "plot.png"), "--json", str(folder / "found.json")]
    assert run([*arguments, *more]) in (0, 1)
    return out


def test_the_page_is_whole_and_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    assert not [tag for tag, _ in reader.tags if tag in ("script", "iframe", "object", "form")]
    loaded = [attributes[name] or "" for _, attributes in reader.tags for name in ("src", "href") if name in attributes]
    assert loaded
    assert all(source.startswith("data:") for source in loaded)
    assert "url(" not in text
    assert all(attributes.get("alt") for tag, attributes in reader.tags if tag == "img")
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in reader.text
    for words in (
        "Error curves",
        "Where on the face",
        "Under corruption",
        "SHA-256",
        "Layers of",
        "contract of",
        "interval",
    ):
        assert words in reader.text
    assert len(page.read_bytes()) < 2_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are Unicode")
def test_files_whose_names_are_not_utf_8_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(PORTRAITS, folder)
    model = shutil.copy(FAST_MODEL, folder / os.fsdecode(b"\xe9t\xe9.onnx"))
    out = tmp_path / "report.html"
    assert run(["verify", str(model), str(model), "--data", str(folder / "landmarks.csv"), "--report", str(out)]) == 0
    assert "?t?.onnx" in out.read_text(encoding="utf-8")


def test_json_and_plot_hold_the_same_curves(page: Path) -> None:
    record = json.loads((page.parent / "found.json").read_text())
    assert record["robustness"]["faces"] == 2
    assert {damage["name"] for damage in record["robustness"]["damages"]} >= {"blur", "noise", "rotation", "box shift"}
    assert f"{record['robustness']['clean'][0]:.4f}"[:4] in page.read_text(encoding="utf-8")
    assert cv2.imread(str(page.parent / "plot.png")) is not None


def browsed(path: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars",
        "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", *options,
        path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_complaint(page: Path, tmp_path: Path, width: int) -> None:
    """No error on the console; nothing wider than a phone, where tables scroll; whole tables on a desktop."""
    script = (
        "<script>parent.document.title = document.documentElement.scrollWidth + ' ' + innerWidth + ' ' + "
        "document.querySelectorAll('svg').length + ' ' + [...document.images].every(i => i.naturalWidth > 0) + ' ' + "
        "[...document.querySelectorAll('.wide')].every(t => t.scrollWidth <= t.clientWidth)</script>"
    )
    text = page.read_text(encoding="utf-8").replace(' loading="lazy"', "").replace("</body>", f"{script}</body>")
    frame = f'<iframe style="width:{width}px;height:4000px;border:0" srcdoc="{escape(text)}"></iframe>'
    outer = tmp_path / "outer.html"
    outer.write_text(f"<!doctype html><title>?</title>{frame}", encoding="utf-8")
    done = browsed(outer, tmp_path, "--dump-dom", "--window-size=1300,1000")
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\w+) (\w+)</title>", done.stdout)
    assert found, done.stdout[:300]
    assert int(found[1]) <= int(found[2]) == width
    assert int(found[3]) >= 10
    assert found[4] == "true"
    assert (found[5] == "true") == (width == 1280)
    assert "CONSOLE" not in done.stderr, done.stderr
    alone = browsed(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in alone.stderr, alone.stderr
    assert "banner" in alone.stdout
