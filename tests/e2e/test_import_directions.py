"""Imports point one way: pfld_edge -> train, convert -> calib -> runtime."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACKAGES = {
    "pfld_edge_runtime": ROOT / "runtime/pfld_edge_runtime",
    "pfld_edge_calib": ROOT / "calib/pfld_edge_calib",
    "pfld_edge_train": ROOT / "train/pfld_edge_train",
    "pfld_edge_convert": ROOT / "convert/pfld_edge_convert",
    "pfld_edge": ROOT / "pfld_edge/pfld_edge",
}

# Which of our packages each may import; `convert` may read the models and checkpoints of `train`.
ALLOWED = {
    "pfld_edge_runtime": set(),
    "pfld_edge_calib": {"pfld_edge_runtime"},
    "pfld_edge_train": {"pfld_edge_calib", "pfld_edge_runtime"},
    "pfld_edge_convert": {"pfld_edge_train", "pfld_edge_calib", "pfld_edge_runtime"},
    "pfld_edge": set(PACKAGES),
}


def imports(package: str) -> Iterator[tuple[Path, str, str]]:
    """Give each import anywhere in a package: file, top-level name, whole name."""
    for path in sorted(PACKAGES[package].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [node.module or ""]
            else:
                continue
            for name in names:
                yield path.relative_to(ROOT), name.partition(".")[0], name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    allowed = ALLOWED[package] | {package}
    wrong = [(str(path), name) for path, top, name in imports(package) if top in PACKAGES and top not in allowed]
    assert not wrong


def test_the_runtime_imports_the_standard_library_numpy_and_onnxruntime() -> None:
    allowed = {"numpy", "onnxruntime", "pfld_edge_runtime", *sys.stdlib_module_names}
    assert not [(str(path), name) for path, top, name in imports("pfld_edge_runtime") if top not in allowed]


@pytest.mark.parametrize("package", ["pfld_edge_runtime", "pfld_edge_calib"])
def test_packages_that_see_no_weights_import_no_torch(package: str) -> None:
    assert not [str(path) for path, top, _ in imports(package) if top in {"torch", "onnxscript"}]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pfld_edge.cli import run; status = run(['--help']);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'cv2', 'numpy', 'rich'} & set(sys.modules);"
        "sys.exit(status or ' '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
