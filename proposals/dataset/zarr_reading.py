"""Zarr arrays that a stranger may have written: only as the format has them, and no chunk larger than it says."""

import stat
from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from proposals.errors import AlignDetError, UnansweredError
from proposals.paths import is_remote, is_web, walk_folders

# 2^20 keys of 65 bytes, or 4096 features of 16 384 float16.
LARGEST_CHUNK = 2**27
_HEADER = 16  # of a blosc frame, which tells at byte 4 how much it unpacks to

Declared = tuple[tuple[int | None, ...], str]


def open_arrays(folder: Path, wanted: Mapping[str, Declared]) -> dict[str, Any]:
    """The arrays ``wanted`` of the group in ``folder``, by name; the name "" is the array that ``folder`` itself is.

    wanted: shape (None where any length will do) and dtype of each. Opens nothing but plain files. Raises AlignDetError
    for an array that is missing, of another shape or type, or stored in another way than this package stores them.
    """
    import zarr

    _require_plain_files(folder)
    opened = {}
    with zarr.config.set({"codecs.blosc": _bounded_blosc()}):
        try:
            node: Any = zarr.open(_store(folder), mode="r", zarr_format=3)
            for name, declared in wanted.items():
                opened[name] = node if not name else node.get(name)
                _require(folder, name, opened[name], declared)
        except AlignDetError:
            raise
        except Exception as error:  # zarr fails wherever a description happens to lead to
            raise AlignDetError(
                f"{folder} is no Zarr of this format ({type(error).__name__}: {error})."
            ) from error
    return opened


def values(array: Any, *where: slice) -> Any:
    """What ``array``, from `open_arrays`, holds there; raises AlignDetError when its chunks are damaged."""
    try:
        return array[where or slice(None)]
    except UnansweredError:
        raise
    except Exception as error:  # of storage, of the codecs, of zarr
        why = str(error) or type(error).__name__
        raise AlignDetError(f"a chunk of {array.store_path} cannot be read: {why}.") from error


def _require(folder: Path, name: str, array: Any, declared: Declared) -> None:
    shape, dtype = declared
    found = tuple(getattr(array, "shape", None) or ()), str(getattr(array, "dtype", None))
    fits = len(found[0]) == len(shape) and found[1] == dtype
    if not fits or any(want not in (None, there) for want, there in zip(shape, found[0], strict=True)):
        raise AlignDetError(f"array {name or folder.name} in {folder} is {found}, it must be {declared}.")
    blocks = (array.chunks, array.shards or array.chunks)
    if any(not 0 < prod(block) * array.dtype.itemsize <= LARGEST_CHUNK for block in blocks):
        raise AlignDetError(f"array {name or folder.name} in {folder} has chunks of {blocks} values.")
    codecs = {type(codec).__name__ for codec in _codecs(array.metadata.codecs)}
    if not codecs <= {"BytesCodec", "BoundedBlosc", "Crc32cCodec", "ShardingCodec"}:
        raise AlignDetError(
            f"array {name or folder.name} in {folder} is packed by {', '.join(sorted(codecs))}."
        )


def _codecs(codecs: Any) -> Iterator[Any]:
    for codec in codecs:
        yield codec
        yield from _codecs((*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())))


def _store(folder: Path) -> Any:
    if not is_remote(folder):
        return folder
    from zarr.storage import FsspecStore

    remote: Any = folder
    options = dict(remote.storage_options)
    kind = FsspecStore
    if is_web(folder):
        from proposals.dataset.web_zarr import WebStore

        kind = WebStore
    return kind.from_url(str(remote), storage_options=options, read_only=True)


def _require_plain_files(folder: Path) -> None:
    if is_remote(folder):
        return
    for inner, folders, files in walk_folders(folder):
        for name in (*folders, *files):
            mode = Path(inner, name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise AlignDetError(f"{Path(inner, name)} is no plain file: a Zarr array holds nothing else.")


def _require_room(chunk: Any, spec: Any) -> None:
    header = bytes(chunk.as_numpy_array()[:_HEADER])
    room = prod(spec.shape) * spec.dtype.to_native_dtype().itemsize
    if len(header) < _HEADER or int.from_bytes(header[4:8], "little") != room:
        raise ValueError(f"it does not unpack to {room} bytes")


@cache
def _bounded_blosc() -> str:
    """Register a blosc that refuses a frame which unpacks to more than its chunk; returns its name in the registry."""
    from zarr.codecs import BloscCodec
    from zarr.registry import fully_qualified_name, register_codec

    class BoundedBlosc(BloscCodec):
        async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            _require_room(chunk_bytes, chunk_spec)
            return await super()._decode_single(chunk_bytes, chunk_spec)

        def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            _require_room(chunk_bytes, chunk_spec)
            return super()._decode_sync(chunk_bytes, chunk_spec)

    register_codec("blosc", BoundedBlosc)
    return fully_qualified_name(BoundedBlosc)
