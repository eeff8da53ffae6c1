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

_DESCRIPTION = "Train by a TOML configuration; print a line for each epoch. Under torchrun, all processes are one run."


def main(arguments: Sequence[str] | None = None) -> int:
    """Train by a TOML configuration; print a line for each epoch.

    Returns:
        The exit status: 0; 2 after a mistake, reported in one line; 128 and the signal's number where one came.
    """
    parser = argparse.ArgumentParser("pfld_edge_train", description=_DESCRIPTION)
    parser.add_argument("--config", required=True, type=Path, help="a TOML file")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="resume from OUT/last.pth, where there is one")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--cache", type=Path, help="folder of cropped faces; default: OUT/cache")
    parser.add_argument("--threads", type=_positive, help="CPU threads of each process")
    try:
        _train(parser.parse_args(arguments))
    except OtherProcessError as error:
        # The failed process reports its error; the first process repeats it.
        return _say(f"Error: {error}", 2) if os.environ.get("RANK", "0") == "0" else 2
    except TrainingInterruptedError as error:
        return _say(str(error), 128 + error.signal)
    except PfldEdgeError as error:
        return _say(f"Error: {error}", 2)
    except OSError as error:
        if error.strerror is None:
            raise
        return _say(f"Error: {error.filename}: {error.strerror}", 2)
    except KeyboardInterrupt:
        return 130
    return 0


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
        train(
            config,
            chosen.out,
            processes,
            TextProgress(sys.stdout),
            resume=chosen.resume,
            init=chosen.init,
            cache=chosen.cache,
        )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _say(text: str, status: int) -> int:
    sys.stderr.write(f"{text}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
