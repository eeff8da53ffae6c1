"""Serves the static folder on one's own computer."""

import errno
import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pfld_edge.errors import InputError

__all__ = ["PageHandler", "open_server"]


class PageHandler(SimpleHTTPRequestHandler):
    """Serves files with the headers that WebAssembly with threads needs."""

    extensions_map = {  # noqa: RUF012 - the base class's attribute
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Add the headers of an isolated page."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


def open_server(
    folder: Path, host: str, port: int, handler: type[SimpleHTTPRequestHandler] = PageHandler
) -> ThreadingHTTPServer:
    """Listen at `port`, or at the next of twenty that is free (0: any).

    Raises:
        InputError: The address can't be listened at.
    """
    for candidate in range(port, min(port + 20, 65536)) if port else [0]:
        try:
            return ThreadingHTTPServer((host, candidate), functools.partial(handler, directory=str(folder)))
        except OSError as error:  # noqa: PERF203 - the next port is tried
            if error.errno != errno.EADDRINUSE:
                raise InputError(f"can't listen at {host}:{candidate}: {error.strerror}") from error
    raise InputError(f"the ports from {port} on are taken: give another --port, or 0 for any")
