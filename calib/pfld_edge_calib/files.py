"""Text files of other programs, atomic writes, and hashes of files."""

import codecs
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pfld_edge_calib.errors import FaceSetError

_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class TextLines:
    """Lines of an open text file, from its position on: UTF-8 with or without a byte order mark, or UTF-16 with one.

    `offset` is the byte offset of the next line, `number` that of lines read.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Find out the encoding; `path` is named in error messages."""
        self.offset, self.number = file.tell(), 0
        self._path, self._file = path, file
        file.seek(0)
        self._encoding = _UTF_16.get(file.read(2), "utf-8")
        file.seek(self.offset)

    def __iter__(self) -> "TextLines":
        """Return itself."""
        return self

    def __next__(self) -> str:
        """Read a line, with its line feed; raises FaceSetError where it is not text."""
        line = self._file.readline()
        # A line feed's byte may be half of another character of UTF-16.
        end = "\n".encode(self._encoding)
        while line and len(end) > 1 and (len(line) % 2 or not line.endswith(end)):
            more = self._file.read(1) if len(line) % 2 else self._file.readline()
            if not more:
                break
            line += more
        if not line:
            raise StopIteration
        self.number += 1
        try:
            text = line.decode(self._encoding)
        except UnicodeDecodeError as error:
            raise FaceSetError(
                f"{self._path}, line {self.number}: not a text file, or not UTF-8 ({error.reason}); save it as UTF-8"
            ) from error
        if "\0" in text:
            raise FaceSetError(f"{self._path}, line {self.number}: not a text file (it holds NUL); save it as UTF-8")
        if "\r" in text.rstrip("\r\n"):
            raise FaceSetError(f"{self._path}, line {self.number}: lines end with CR alone; save it with LF or CRLF")
        text = text if self.offset else text.removeprefix("\ufeff")
        self.offset += len(line)
        return text


def read_lines(path: Path) -> list[str]:
    """Read all lines of a text file; see `TextLines`."""
    with path.open("rb") as file:
        return list(TextLines(path, file))


def number_fault(error: ValueError | OverflowError) -> str:
    """Say what is wrong with a text that is no number."""
    fault = str(error)
    return f"{fault}: write a decimal point" if re.search(r"'-?\d+,\d+'$", fault) else fault


def named_file(folder: Path, name: str) -> Path:
    """Path of a file that a text file names: as it is written, else without outer blanks, backslashes as slashes."""
    path, plain = folder / name, name.strip().replace("\\", "/")
    return path if plain == name or path.exists() else folder / plain


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends; a killed run leaves the old file or the new one.

    Missing folders are created. Where the file can't be written the OSError names `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as caught:
        # torch.save ends a failed write with an error of its own, a RuntimeError, after the system's.
        error = caught if isinstance(caught, OSError) else caught.__context__
        if not isinstance(error, OSError) or error.filename not in (None, str(partial), str(path.parent)):
            raise  # of another file, which the block reads
        # mkdir says that a file exists, where a folder is wanted.
        code = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno
        raise OSError(code, os.strerror(code) if code else error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def sha256_of(path: Path) -> str:
    """Hash a file's contents, hexadecimal; reads 1 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
