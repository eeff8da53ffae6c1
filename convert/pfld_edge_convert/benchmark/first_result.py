"""A fresh process: opens a model, runs it once, prints a line with its times; imports no more than a device does.

python -m pfld_edge_convert.benchmark.first_result MODEL THREADS '{"input": "input.npy"}' DEVICE
"""

import json
import sys
import time
from pathlib import Path

__all__: list[str] = []


def _main(model: str, threads: str, inputs: str, device: str) -> None:
    started = time.perf_counter()
    import numpy as np

    from pfld_edge_runtime.networks import open_network
    from pfld_edge_runtime.session import is_litert, open_session

    feed = {name: np.load(path) for name, path in json.loads(inputs).items()}
    imported, before = time.perf_counter(), _resident()
    if device != "cpu" or is_litert(model):
        run = open_network(Path(model), device, int(threads)).run
        loaded = time.perf_counter()
        run(*feed.values())
    else:
        session = open_session(model, threads=int(threads))
        loaded = time.perf_counter()
        session.run(None, feed)
    done = time.perf_counter()
    found = {
        "import_ms": 1000 * (imported - started),
        "load_ms": 1000 * (loaded - imported),
        "first_ms": 1000 * (done - loaded),
        "resident": _resident(),
        "resident_before": before,
    }
    print(json.dumps(found), flush=True)  # noqa: T201 - what the parent waits for


def _resident() -> int | None:
    """Bytes that are in memory now; where only Linux's way is missing, the most there ever were."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text(encoding="ascii", errors="replace").partition("VmRSS:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    _main(*sys.argv[1:])
