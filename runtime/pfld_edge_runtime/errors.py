"""The errors of this package: each one is a `PfldEdgeError` and the builtin exception that fits it."""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any


class PfldEdgeError(Exception):
    """Base of every error that pfld-edge raises on purpose; its message is one line that a user can act on."""


class ImageError(PfldEdgeError, ValueError):
    """The image can't be used: wrong shape, wrong dtype, empty, or values out of range."""


class BoxError(PfldEdgeError, ValueError):
    """A face box can't be used: wrong shape, NaN or infinite, or without area."""


class LandmarkError(PfldEdgeError, ValueError):
    """Landmarks can't be used: wrong shape, another scheme's number of points, NaN or infinite."""


class MissingPackageError(PfldEdgeError, ImportError):
    """An optional package that a call needs isn't installed."""


class ModelFileError(PfldEdgeError, ValueError):
    """The model file is missing, truncated, or not something that onnxruntime can open."""


class ModelContractError(PfldEdgeError, ValueError):
    """The model's contract is absent, damaged, of a newer format, contradicts the network, or lacks a needed field."""


class DeviceError(PfldEdgeError, RuntimeError):
    """The device that was asked for is unknown, or this build of onnxruntime can't use it."""


class DetectorError(PfldEdgeError, ValueError):
    """The detector is unknown, not downloaded, damaged, or its settings can't be used."""


class DownloadError(PfldEdgeError, OSError):
    """A detector's file could not be fetched, or is not the file that was published."""


class TrackerError(PfldEdgeError, ValueError):
    """A setting of the tracker is out of range."""


class SmoothingError(PfldEdgeError, ValueError):
    """A setting of a smoothing filter is out of range."""


class TimestampError(PfldEdgeError, ValueError):
    """A frame's timestamp is not after the last one's, or is no time at all."""


def is_number(value: object, *, whole: bool = False) -> bool:
    """Whether a setting is a number of Python or numpy, or a whole one; True and False are none."""
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


def check_counts(error: type[PfldEdgeError], least: int, *, optional: bool = False, **settings: Any) -> None:  # noqa: ANN401
    """Raise `error` for the first setting that is no whole number of at least `least`, nor None if `optional`."""
    for name, value in settings.items():
        if not (optional and value is None) and not (is_number(value, whole=True) and value >= least):
            raise error(f"{name} must be {least} or more and whole, not {value!r}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before the error of a model that doesn't say which file it is about."""
    try:
        yield
    except (ModelContractError, ModelFileError) as error:
        if path.name in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
