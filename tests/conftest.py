"""Settings of the whole suite; the shared data, which no test reaches but by the fixture `shared`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# A test must not depend on the machine's speed.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """A file of this name, which the first of all test processes makes: torch's exporter takes seconds each time."""
    from filelock import FileLock  # torch needs it too

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path = folder / "made-once" / name
        with FileLock(f"{folder / path.stem}.lock"):
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                make(path)
        return path

    return made


@pytest.fixture(scope="session")
def converted_s(made_once: MadeOnce) -> Path:
    """`checkpoints/pfld-edge-s.pth` as ONNX file, with its end-to-end graph beside it."""
    from pfld_edge_convert.calibration import sample_crops
    from pfld_edge_convert.model_file import checkpoint_contract
    from pfld_edge_convert.pipeline import convert
    from pfld_edge_train.checkpoint import load_model

    def make(path: Path) -> None:
        model, checkpoint = load_model(Path(__file__).parents[1] / "checkpoints/pfld-edge-s.pth")
        contract = checkpoint_contract(checkpoint)
        convert(model, contract, path, sample_crops(contract), end_to_end=True)

    return made_once("s.onnx", make)


@pytest.fixture(scope="session", autouse=True)
def shared_folder() -> Path | None:
    """PFLD_EDGE_SHARED, which is taken from the environment: other tests see a machine without the data."""
    folder = os.environ.pop("PFLD_EDGE_SHARED", "")
    return Path(folder).resolve() if folder else None


@pytest.fixture(scope="session")
def shared(shared_folder: Path | None) -> Path:
    """Folder of the shared data; tests that ask for it skip without."""
    if shared_folder is None:
        pytest.skip("PFLD_EDGE_SHARED is not set: no WFLW faces, no published files")
    return shared_folder
