"""Figures in README.md and docs/ are those that tools/figures.py measured."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools/figures.py"), run_name="figures")
pasted = TOOL["pasted"]


@pytest.fixture(scope="module")
def record() -> dict[str, str]:
    known: dict[str, str] = json.loads((ROOT / "docs/figures.json").read_text(encoding="utf-8"))
    return known


def test_pages_hold_what_was_measured(record: dict[str, str]) -> None:
    for page in TOOL["pages"]():
        text = page.read_text(encoding="utf-8")
        assert pasted(text, record) == text, f"{page}: run tools/figures.py --paste"


def test_every_recorded_figure_can_be_measured_again_and_is_shown(record: dict[str, str]) -> None:
    assert set(record) <= set(TOOL["FIGURES"])
    shown = {name for page in TOOL["pages"]() for name in re.findall(r"<!-- figure: ([\w-]+) -->", page.read_text())}
    assert shown == set(record)


def test_accuracy_is_given_with_intervals(record: dict[str, str]) -> None:
    tables = [text for name, text in record.items() if name.endswith("accuracy")]
    rows = [row for table in tables for row in table.splitlines()[2:]]
    assert rows
    for row in rows:
        nme, low, high = map(float, re.findall(r"0\.\d{4}", row))
        assert low < nme < high
    assert all(re.search(r"[+-]\d+\.\d\d % \([+-]\d", row) for row in rows if "INT8" in row)


def test_only_what_stands_between_marks_is_replaced() -> None:
    page = "a <!-- figure: size -->old<!-- /figure --> b\n\n<!-- figure: table -->\nold\n<!-- /figure -->\n"
    found = pasted(page, {"size": "3 kB", "table": "| x |\n|---|"})
    assert found.startswith("a <!-- figure: size -->3 kB<!-- /figure --> b\n")
    assert "<!-- figure: table -->\n\n| x |\n|---|\n\n<!-- /figure -->" in found
    assert pasted(found, {"size": "3 kB", "table": "| x |\n|---|"}) == found


def test_a_mark_without_end_or_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="not closed"):
        pasted("<!-- figure: size -->3 kB", {"size": "3 kB"})
    with pytest.raises(KeyError, match="size"):
        pasted("<!-- figure: size -->3 kB<!-- /figure -->", {})
