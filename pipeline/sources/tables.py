"""Images in the rows of Parquet files, or of Arrow files as `datasets.save_to_disk` writes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.base import Source, SourceEntry
from pipeline.sources.containers import listed
from proposals.errors import AlignDetError
from proposals.image_roots import ImageRoot, Kind, shortened
from proposals.image_rows import arrow_batches, can_hold_images, is_parquet, open_binary

_BATCH = 4096


@dataclass(frozen=True)
class ParquetSource(Source):
    """A row an image, file after file. column: binary, or Hugging Face's struct of bytes and path.

    files: paths below ``root``. A file that cannot be read gives one entry, which is rejected.
    """

    kind: ClassVar[Kind] = "parquet"
    root: str
    files: tuple[str, ...]
    column: str
    left_out: tuple[str, ...] = ()

    @property
    def images(self) -> ImageRoot:
        """See `Source`."""
        return ImageRoot(kind=self.kind, root=self.root, column=self.column)

    def entries(self) -> Iterator[SourceEntry]:
        """See `Source`. Sizes are not known (-1): the bytes are not read, only the names beside them.

        Raises AlignDetError when a file's place fails while it is listed, or its name could be that of another's row.
        """
        empty = True
        for file in self.files:
            self.images.require_told_apart(file)
            for entry in listed(file, self.images.locate(file), partial(self._rows, file)):
                empty = False
                yield entry
        if empty:
            raise AlignDetError(f"the {len(self.files)} files of {self.root} have no row.")

    def _rows(self, file: str, stream: BinaryIO) -> Iterator[SourceEntry]:
        for row, name in enumerate(self._names(stream)):
            last = shortened((name or "").replace("\\", "/").rsplit("/", 1)[-1])
            yield SourceEntry(f"{file}/{row}/{last}" if last else f"{file}/{row}", -1)

    def _names(self, stream: BinaryIO) -> Iterator[str | None]:
        with pq.ParquetFile(stream) as table:
            kind = _images(table.schema_arrow.field(self.column).type)
            if not _has_paths(kind):
                yield from [None] * table.metadata.num_rows
                return
            wanted = self.column if _is_text(kind) else f"{self.column}.path"
            for batch in table.iter_batches(batch_size=_BATCH, columns=[wanted], use_threads=False):
                yield from _paths(batch.column(0))


@dataclass(frozen=True)
class ArrowSource(ParquetSource):
    """As `ParquetSource`, of the Arrow files of a Hugging Face dataset on disk."""

    kind: ClassVar[Kind] = "arrow"

    def _names(self, stream: BinaryIO) -> Iterator[str | None]:
        for batch in arrow_batches(stream):
            column = batch.column(self.column)
            yield from _paths(column) if _has_paths(_images(column.type)) else [None] * len(column)


def image_column(schema: pa.Schema) -> str | None:
    """The only column that can hold images: a struct of bytes and path, else of binary; None without, or with many."""
    structs = [field.name for field in schema if _is_image(field.type) and can_hold_images(field.type)]
    binaries = [
        field.name
        for field in schema
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    ]
    found = structs or binaries
    return found[0] if len(found) == 1 else None


def read_schema(location: str) -> pa.Schema:
    """The schema of a Parquet or Arrow file; raises AlignDetError when it is neither."""
    try:
        with open_binary(location) as stream:
            if is_parquet(location):
                return pq.read_schema(stream)
            return next(arrow_batches(stream)).schema
    except StopIteration as error:
        raise AlignDetError(f"{location} cannot be read as a table: it has no rows.") from error
    except AlignDetError:
        raise
    except Exception as error:  # every backend has exceptions of its own
        raise AlignDetError(f"{location} cannot be read as a table: {error}") from error


def _images(kind: Any) -> Any:
    if not can_hold_images(kind):
        raise ValueError(f"{kind} is no type of images")
    return kind


def _is_image(kind: Any) -> bool:
    wanted = {"bytes", "path"}
    return pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} >= wanted


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _has_paths(kind: Any) -> bool:
    return _is_image(kind) or _is_text(kind)


def _paths(column: Any) -> list[str | None]:
    if pa.types.is_struct(column.type):
        column = column.field("path")
    paths: list[str | None] = column.to_pylist()
    return paths
