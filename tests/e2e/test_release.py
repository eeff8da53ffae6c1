"""What a release says of itself agrees: one version everywhere, and a change log that knows it."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def project(path: str) -> dict[str, object]:
    return dict(tomllib.loads((ROOT / path).read_text(encoding="utf-8"))["project"])


def test_one_version_everywhere() -> None:
    toolkit, runtime = project("pyproject.toml"), project("runtime/pyproject.toml")
    found = {
        str(toolkit["version"]),
        str(runtime["version"]),
        version("pfld-edge"),
        version("pfld-edge-runtime"),
        str(re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]).strip('"'),  # type: ignore[index]
    }
    assert len(found) == 1
    dependencies = toolkit["dependencies"]
    assert isinstance(dependencies, list)
    assert f"pfld-edge-runtime=={found.pop()}" in dependencies


def test_the_change_log_has_this_version_or_what_is_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0] == version("pfld-edge")


def test_every_model_that_is_bundled_has_its_card() -> None:
    bundled = {path.name.partition(".")[0] for path in (ROOT / "runtime/pfld_edge_runtime/models").glob("*.onnx")}
    bundled |= {path.stem for path in (ROOT / "checkpoints").glob("*.pth")}
    assert bundled
    assert bundled <= {path.stem for path in (ROOT / "docs/models").glob("*.md")}
