"""What can go wrong around detectors, besides what can go wrong around any model."""

from pfld_edge_runtime.errors import PfldEdgeError

__all__ = ["DetectorError", "DownloadError"]


class DetectorError(PfldEdgeError, ValueError):
    """The detector is unknown, not downloaded, damaged, or its settings can't be used."""


class DownloadError(PfldEdgeError, OSError):
    """A detector's file could not be fetched, or is not the file that was published."""
