"""Builds what is published, twice, and refuses to call it done unless both times gave the same bytes.

    python tools/release.py [--out dist]

Wheels and source archives of pfld-edge and pfld-edge-runtime, `twine check --strict`, the runtime's wheel alone in a
fresh environment, then both wheels (inspect, predict), a CycloneDX bill of materials for each, SHA256SUMS.
`make release` calls it; needs the extra `release`.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
PROJECTS = (ROOT / "runtime", ROOT)
OURS = (".whl", ".tar.gz", ".cdx.json", "SHA256SUMS")
PORTRAIT = ROOT / "calib/pfld_edge_calib/portraits/grace_hopper.jpg"

RUNTIME_CHECK = """
import sys, numpy as np
from pfld_edge_runtime import FaceAnalyzer, FaceLandmarker
blank = np.zeros((300, 300, 3), np.uint8)
found = FaceLandmarker()(blank, [[50, 50, 250, 250]], "rgb")
assert found.shape == (1, 98, 2) and np.isfinite(found).all()
assert FaceAnalyzer()(blank).landmarks.shape == (0, 98, 2)
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "cv2", "onnx", "click", "rich"}, loaded
"""


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "dist", help="Folder; an earlier release in it goes."
)
def main(out: Path) -> None:
    """Build, check and sum up a release; an earlier one in the folder goes."""
    strange = [path.name for path in out.glob("*") if not path.name.endswith(OURS)]
    if strange:
        raise SystemExit(f"{out} holds {strange[0]}, which no release left there: give another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / "again"
        files, repeated = _built(out), _built(again)
        changed = [name for name in files if files[name] != repeated.get(name)]
        if changed or files.keys() != repeated.keys():
            raise SystemExit(f"not reproducible: {', '.join(changed) or sorted(files.keys() ^ repeated.keys())}")
        click.echo(f"built twice, the same bytes: {', '.join(files)}")
        _run([sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(out.iterdir()))])
        fresh = Path(scratch) / "fresh"
        venv.create(fresh, with_pip=False)
        python = fresh / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        _check_runtime(out, python)
        _check_toolkit(out, python)
    sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in sorted(out.iterdir()))
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")
    click.echo(sums, nl=False)


def _built(out: Path) -> dict[str, str]:
    """Build everything; names and hashes."""
    for project in PROJECTS:
        _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(project)])
    return {path.name: _sha256(path) for path in sorted(out.iterdir())}


def _check_runtime(out: Path, python: Path) -> None:
    """The runtime's wheel alone: it needs numpy and onnxruntime, and brings nothing else of ours."""
    _install(python, out.glob("pfld_edge_runtime-*.whl"))
    _run([str(python), "-c", RUNTIME_CHECK])
    names = {item["name"].lower() for item in json.loads(_run([*_pip(python), "list", "--format", "json"]))}
    foreign = names & {"torch", "opencv-python-headless", "onnx"}
    if foreign or not {"numpy", "onnxruntime", "pfld-edge-runtime"} <= names:
        raise SystemExit(f"the runtime brought {sorted(names)}")
    _bill(python, out / "pfld-edge-runtime.cdx.json", ROOT / "runtime/pyproject.toml")
    click.echo("the runtime's wheel runs alone in a fresh environment")


def _check_toolkit(out: Path, python: Path) -> None:
    """The toolkit's wheel beside it: the commands that need no torch work."""
    _install(python, out.glob("*.whl"))
    program, fresh = python.with_name("pfld-edge"), python.parents[1]
    _run([str(program), "--version"])
    models = next(fresh.glob("[Ll]ib*/**/pfld_edge_runtime/models"))
    _run([str(program), "inspect", str(models / "pfld-edge-s.int8.onnx")])
    drawn = fresh / "out.png"
    _run([str(program), "predict", str(PORTRAIT), "-o", str(drawn)])
    if not drawn.is_file():
        raise SystemExit("the toolkit's wheel drew nothing")
    _bill(python, out / "pfld-edge.cdx.json", ROOT / "pyproject.toml")
    click.echo("both wheels work in it too")


def _install(python: Path, wheels: Iterable[Path]) -> None:
    """Install with uv where it stands beside this Python, which resolves and unpacks faster, or else with pip."""
    constraints, uv = ["-c", str(ROOT / "constraints.txt")], shutil.which("uv", path=str(Path(sys.executable).parent))
    command = [uv, "pip", "install", "--python", str(python)] if uv else [*_pip(python), "install", "--no-compile"]
    _run([*command, "--quiet", *constraints, *map(str, sorted(wheels))])


def _pip(python: Path) -> list[str]:
    return [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]


def _bill(python: Path, target: Path, project: Path) -> None:
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(project), "--of", "JSON"]
    _run([*command, "--output-reproducible", "-o", str(target), str(python)])
    bill = json.loads(target.read_text(encoding="utf-8"))
    for component in bill["components"]:
        # Where our own wheel lay while it was tried concerns nobody, and would differ from machine to machine.
        links = component.get("externalReferences", [])
        component["externalReferences"] = [link for link in links if not link["url"].startswith("file:")]
    target.write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)  # noqa: S603 - our own commands
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
