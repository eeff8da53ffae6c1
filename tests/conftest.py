"""Settings of the whole suite; the shared data, which no test reaches but by the fixture `shared`."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A test must not depend on the machine's speed.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


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
