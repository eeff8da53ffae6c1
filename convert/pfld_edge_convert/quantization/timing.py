"""How fast one network is against another, on this machine, now."""

from collections.abc import Callable

import numpy as np
import onnx

from pfld_edge_convert.benchmark.turns import take_turns
from pfld_edge_convert.inference import open_model

__all__ = ["face_milliseconds"]

_WARM_UP = 10


def face_milliseconds(models: dict[str, onnx.ModelProto], rounds: int = 60) -> dict[str, float]:
    """Median milliseconds of one face through each network, one thread.

    The networks take turns, so that whatever slows the machine slows all of them: the ratio means more than either.

    Args:
        models: Networks by name, each with one input of known shape but for the batch.
        rounds: Timed calls of each.
    """
    calls = {name: _one_face(model) for name, model in models.items()}
    return {name: float(np.median(values)) for name, values in take_turns(calls, rounds, warm_up=_WARM_UP).items()}


def _one_face(model: onnx.ModelProto) -> Callable[[], object]:
    session = open_model(model)
    value = session.get_inputs()[0]
    noise = np.random.default_rng(0).integers(0, 256, [1, *value.shape[1:]])
    inputs = noise.astype(np.uint8) if value.type == "tensor(uint8)" else (noise / 127.5 - 1).astype(np.float32)
    return lambda: session.run(None, {value.name: inputs})
