"""Zarr on a web server, read as the rest of a dataset is read: Zarr's own store takes a whole file for the part that it
asked for. Imports Zarr.
"""

import asyncio
from pathlib import Path
from typing import Any

from zarr.storage import FsspecStore

from proposals.dataset.files import read_range
from proposals.dataset.zarr_reading import LARGEST_CHUNK
from proposals.errors import AlignDetError
from proposals.paths import as_path
from proposals.remote_files import info_of, pieces_of


class WebStore(FsspecStore):
    """As FsspecStore; reads raise as `read_range` does."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The bytes of ``key``, or those in ``byte_range``; None where there is no such file."""
        path = as_path(f"{self.path.rstrip('/')}/{key}")
        try:
            data = await asyncio.to_thread(_part, path, byte_range)
        except FileNotFoundError:
            return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        """`get` of each (key, range)."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))


def _part(path: Path, wanted: Any) -> bytes:
    """What one of Zarr's byte ranges means: between two places, from one on, or of the end. None: all of it."""
    if wanted is None:
        return _whole(path)
    if hasattr(wanted, "end"):
        return read_range(path, wanted.start, wanted.end - wanted.start)
    size = info_of(path)["size"]
    if size is None:
        data = _whole(path)
        return data[_start(wanted, len(data)) :]
    return read_range(path, _start(wanted, size), size - _start(wanted, size))


def _start(wanted: Any, size: int) -> int:
    return int(wanted.offset if hasattr(wanted, "offset") else max(0, size - wanted.suffix))


def _whole(path: Path) -> bytes:
    data = bytearray()
    for piece in pieces_of(path):
        data += piece
        if len(data) > LARGEST_CHUNK:
            raise AlignDetError(f"{path} is larger than the {LARGEST_CHUNK} bytes allowed.")
    return bytes(data)
