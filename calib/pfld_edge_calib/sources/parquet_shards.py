"""Parquet files with a photograph a row: its file's bytes, and what is known of its faces."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.sources.annotation import FACE_FIELDS, annotated_faces
from pfld_edge_calib.sources.unit import UNIT_FACES, SourcePhoto
from pfld_edge_runtime import MissingPackageError

__all__ = ["ParquetUnit", "parquet_units"]

_ROWS_A_READ = 16
"""Few, since each brings its photograph along."""


@dataclass(frozen=True, slots=True)
class ParquetUnit:
    """Neighbouring row groups of one file.

    Attributes:
        path: The file.
        groups: The row groups.
        first: Number of the first row in the file.
        count: Rows.
    """

    path: Path
    groups: tuple[int, ...]
    first: int
    count: int

    def photos(self) -> Iterator[SourcePhoto]:
        """Read them in order, a few rows at a time."""
        with _open(self.path) as file:
            known = [name for name in ("image", *FACE_FIELDS, "faces") if name in file.schema_arrow.names]
            row = self.first
            try:
                for batch in file.iter_batches(_ROWS_A_READ, row_groups=list(self.groups), columns=known):
                    for record in batch.to_pylist():
                        yield _photo(self.path, row, record)
                        row += 1
            except OSError as error:
                raise FaceSetError(f"{self.path}: row {row} or the next can't be read ({error})") from error


def parquet_units(path: Path, size: int = UNIT_FACES) -> Iterator[ParquetUnit]:
    """Cut a file into units of whole row groups; reads its footer only.

    Raises:
        FaceSetError: It is damaged, or has no ``image`` column.
        MissingPackageError: pyarrow is not installed.
    """
    with _open(path) as file:
        if "image" not in file.schema_arrow.names:
            raise FaceSetError(f"{path}: no column `image`; found {', '.join(file.schema_arrow.names)}")
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    groups: list[int] = []
    first = count = 0
    for group, more in enumerate(rows):
        if groups and count + more > size:
            yield ParquetUnit(path, tuple(groups), first, count)
            groups, first, count = [], first + count, 0
        groups.append(group)
        count += more
    if count:
        yield ParquetUnit(path, tuple(groups), first, count)


def _open(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "Parquet files need pyarrow: install it with `pip install 'pfld-edge[parquet]'`"
        ) from error
    try:
        # Without a buffer of its own pyarrow reads a whole row group into memory.
        return ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (ArrowInvalid, OSError) as error:
        raise FaceSetError(f"{path}: not a Parquet file that can be read ({error})") from error


def _photo(path: Path, row: int, record: dict[str, Any]) -> SourcePhoto:
    # Hugging Face's data sets keep an image as {"bytes", "path"}.
    image = record["image"] if isinstance(record["image"], dict) else {"bytes": record["image"]}
    label = str(image.get("path") or f"row-{row}")
    encoded = image.get("bytes")
    if not isinstance(encoded, bytes):
        raise FaceSetError(f"{path}, row {row}: no image bytes in column `image`")
    place = path / label
    return SourcePhoto(place, f"{path.stem}/{label}", annotated_faces(record, place, encoded), encoded)
