"""Faces of the two bundled portraits, cached as training caches them."""

from collections.abc import Callable

import numpy as np
import pytest

from pfld_edge_calib import cut_faces, portraits
from pfld_edge_runtime import Contract, CropRule
from pfld_edge_train.config import AugmentConfig
from pfld_edge_train.face_cache import FaceCache

Strengths = Callable[..., AugmentConfig]


@pytest.fixture(scope="session")
def cache() -> FaceCache:
    """Forty faces, every fifth held out; weights that tell points apart."""
    faces = portraits() * 20
    wide = Contract(input_size=160, crop=CropRule(margin=1.8))
    cut = next(cut_faces(faces, wide, batch_size=len(faces)))
    known = np.stack([face.landmarks for face in faces if face.landmarks is not None])
    return FaceCache(
        crops=cut.crops,
        windows=np.concatenate([cut.windows.corners, cut.windows.sizes[:, None]], axis=1),
        landmarks=known,
        weights=np.tile(np.linspace(0.1, 1, 98, dtype=np.float32), (40, 1)),
        attributes=np.arange(240).reshape(40, 6) % 3 == 0,
        repeats=np.ones(40, np.int64),
        held_out=np.arange(40) % 5 == 0,
    )


@pytest.fixture(scope="session")
def only() -> Strengths:
    """Strengths that are all zero but those named."""
    zero = dict.fromkeys(AugmentConfig.__dataclass_fields__, 0.0)
    return lambda **strengths: AugmentConfig(**(zero | strengths))
