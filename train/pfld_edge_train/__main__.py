"""`python -m pfld_edge_train`, and under torchrun: a run without the command line's package.

torchrun --nproc-per-node 2 -m pfld_edge_train --config run.toml -o runs/mine
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pfld_edge_runtime import PfldEdgeError
from pfld_edge_train.errors import OtherProcessError, TrainingInterruptedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Train by a TOML configuration; print a line for each epoch.

    Returns:
        The exit status: 0; 2 after a mistake, reported in one line; 128 and the signal's number where one came.
    """
    parser = argparse.ArgumentParser(
        "pfld_edge_train",
        description="Train by a TOML configuration; print a line for each epoch. Under torchrun, all processes are one "
        "run.",
    )
    parser.add_argument("--config", required=True, type=Path, help="a TOML file")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="resume from OUT/last.pth, where there is one")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--cache", type=Path, help="folder of cropped faces; default: OUT/cache")
    parser.add_argument("--threads", type=_positive, help="CPU threads of each process")
    status, text = 2, ""
    try:
        _train(parser.parse_args(arguments))
        return 0
    except OtherProcessError as error:
        # The failed process reports its error; the first process repeats it.
        text = f"Error: {error}" if os.environ.get("RANK", "0") == "0" else ""
    except TrainingInterruptedError as error:
        status, text = 128 + error.signal, str(error)
    except PfldEdgeError as error:
        text = f"Error: {error}"
    except OSError as error:
        if error.strerror is None:
            raise
        text = f"Error: {error.filename}: {error.strerror}"
    except KeyboardInterrupt:
        status = 130
    sys.stderr.write(f"{text}\n" if text else "")
    return status


def _train(chosen: argparse.Namespace) -> None:
    from pfld_edge_train.config import load_config
    from pfld_edge_train.fit import train, use_threads
    from pfld_edge_train.processes import joined_processes
    from pfld_edge_train.run_log import TextProgress

    if chosen.threads:
        use_threads(chosen.threads)
    with ExitStack() as stack:
        try:
            config = load_config(chosen.config)
            processes = stack.enter_context(joined_processes(config.device))
        except PfldEdgeError as error:
            # All processes of a machine meet this error; one of them reports it.
            raise error if os.environ.get("LOCAL_RANK", "0") == "0" else OtherProcessError(str(error)) from error
        options = {name: getattr(chosen, name) for name in ("resume", "init", "cache")}
        train(config, chosen.out, processes, TextProgress(sys.stdout), **options)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
