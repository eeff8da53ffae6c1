"""How fast one network is against another, on this machine, now."""

import time
from statistics import median

import numpy as np
import onnx

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
    calls = {}
    for name, model in models.items():
        session = open_model(model)
        value = session.get_inputs()[0]
        shape = [1, *value.shape[1:]]
        noise = np.random.default_rng(0).integers(0, 256, shape)
        inputs = noise.astype(np.uint8) if value.type == "tensor(uint8)" else (noise / 127.5 - 1).astype(np.float32)
        calls[name] = (session, {value.name: inputs})
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + _WARM_UP):
        for name, (session, feed) in calls.items():
            start = time.perf_counter()
            session.run(None, feed)
            if turn >= _WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}
