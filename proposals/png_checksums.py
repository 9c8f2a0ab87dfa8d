"""The pixels of a PNG, of which Pillow does not look at the checksums."""

import zlib
from collections.abc import Iterator

_SIGNATURE = 8  # bytes
_HEAD = 8  # of a chunk: length and kind; a checksum follows its data
_CHECKSUM = 4
_END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def has_sound_checksums(data: bytes) -> bool:
    """Whether the checksum of every whole chunk of pixels (IDAT) is right.

    A file that was half written before a crash has the right size and zeros at its end, and of a changed byte a decoder
    makes some image or other. A file that ends inside a chunk is the decoder's to refuse.
    """
    view = memoryview(data)
    return all(
        zlib.crc32(view[start + 4 : end - _CHECKSUM]) == int.from_bytes(view[end - _CHECKSUM : end], "big")
        for start, end in _pixel_chunks(view)
        if end <= len(view)
    )


def without_what_follows(data: bytes) -> bytes:
    """The same PNG up to its last pixels."""
    last = max((end for _, end in _pixel_chunks(memoryview(data))), default=len(data))
    return data[:last] + _END


def _pixel_chunks(view: memoryview) -> Iterator[tuple[int, int]]:
    """(first byte, byte after the last) of every IDAT, up to the end or to what is no chunk."""
    place = _SIGNATURE
    while place + _HEAD <= len(view):
        kind = bytes(view[place + 4 : place + _HEAD])
        if kind == b"IEND" or not kind.isalpha():
            return
        end = place + _HEAD + int.from_bytes(view[place : place + 4], "big") + _CHECKSUM
        if kind == b"IDAT":
            yield place, end
        place = end
