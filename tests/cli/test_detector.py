"""`pfld-edge detector`: what is known, what is here, and nothing fetched unasked."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pfld_edge.cli import run
from pfld_edge_runtime import BUNDLED_DETECTOR, DETECTOR_FILES

Printed = pytest.CaptureFixture[str]

PUBLISHED = b"a network" * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; `yunet` is published in a file beside it."""
    source = tmp_path / "published.onnx"
    source.write_bytes(PUBLISHED)
    digest = hashlib.sha256(PUBLISHED).hexdigest()
    entry = replace(DETECTOR_FILES["yunet"], url=source.as_uri(), sha256=digest, size=len(PUBLISHED))
    monkeypatch.setitem(DETECTOR_FILES, "yunet", entry)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pfld-edge/detectors"


def states(printed: str) -> dict[str, str]:
    """Name and state of each line of the list."""
    lines = [line.split() for line in printed.splitlines() if line.split()[0] in DETECTOR_FILES]
    return {words[0]: words[-1] for words in lines}


def test_the_list_names_every_detector_and_says_which_is_here(cache: Path, capsys: Printed) -> None:
    assert run(["detector", "list"]) == 0
    printed = capsys.readouterr().out
    assert states(printed) == dict.fromkeys(DETECTOR_FILES, "no")
    assert f"folder: {cache}" in printed
    assert run(["detector", "download", "yunet"]) == 0
    capsys.readouterr()
    assert run(["detector", "list"]) == 0
    assert states(capsys.readouterr().out)["yunet"] == "yes"
    (cache / "yunet_n_dynamic.onnx").write_bytes(b"half of it")
    assert run(["detector", "list"]) == 0
    assert states(capsys.readouterr().out)["yunet"] == "damaged"


def test_a_download_goes_to_the_cache_and_says_its_license(cache: Path, capsys: Printed) -> None:
    assert run(["detector", "download", "yunet"]) == 0
    path = cache / "yunet_n_dynamic.onnx"
    assert path.read_bytes() == PUBLISHED
    assert capsys.readouterr().out == f"yunet -> {path} ({DETECTOR_FILES['yunet'].license})\n"


def test_a_download_goes_where_it_is_told(cache: Path, tmp_path: Path) -> None:
    assert run(["detector", "download", "yunet", "--folder", str(tmp_path / "own")]) == 0
    assert (tmp_path / "own/yunet_n_dynamic.onnx").read_bytes() == PUBLISHED
    assert not cache.exists()


def test_offline_one_line_says_which_file_goes_where(
    cache: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    address = "http://127.0.0.1:1/scrfd_500m_kps.onnx"
    monkeypatch.setitem(DETECTOR_FILES, "scrfd", replace(DETECTOR_FILES["scrfd"], url=address))
    assert run(["detector", "download", "yunet", "scrfd"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Error: {address} could not be fetched")
    assert line.endswith(f"put it at {cache / 'scrfd_500m_kps.onnx'}")
    assert [path.name for path in cache.iterdir()] == ["yunet_n_dynamic.onnx"]


def test_another_file_than_the_published_is_refused(
    cache: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DETECTOR_FILES, "yunet", replace(DETECTOR_FILES["yunet"], sha256="0" * 64))
    assert run(["detector", "download", "yunet"]) == 2
    assert "gave another file than was published" in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("download", "NAME"),
        ("download blazeface", "unknown detector 'blazeface'; known: bundled, yunet, scrfd"),
        ("download bundled", "comes with pfld-edge-runtime: there is nothing to download"),
        ("download yunet blazeface", "unknown detector 'blazeface'"),
        ("upload", "No such command 'upload'"),
    ],
)
def test_a_mistake_is_one_line_and_fetches_nothing(cache: Path, arguments: str, says: str, capsys: Printed) -> None:
    assert run(["detector", *arguments.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not cache.exists()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["list", "--help"], ["download", "--help"]])
def test_help_says_what_each_does(arguments: list[str], capsys: Printed) -> None:
    assert run(["detector", *arguments]) == 0
    assert "Usage: pfld-edge detector" in capsys.readouterr().out


def test_the_list_for_machines(cache: Path, capsys: Printed) -> None:
    assert run(["detector", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["here"] for row in rows} == {"bundled": "yes", **dict.fromkeys(DETECTOR_FILES, "no")}
    assert [Path(row["path"]).parent for row in rows] == [BUNDLED_DETECTOR.parent] + [cache] * len(DETECTOR_FILES)
