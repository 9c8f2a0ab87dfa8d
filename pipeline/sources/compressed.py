"""Compressed files, which are not read: of a tar an image is found by the bytes that it has there."""

import re

from proposals.errors import AlignDetError

_SUFFIXES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".zip", ".7z")
# gzip, xz, zstd, bzip2. No name of a tar's first member begins so.
_BEGINS = re.compile(rb"\x1f\x8b\x08|\xfd7zXZ\0|\x28\xb5\x2f\xfd|BZh[1-9](1AY&SY|\x17rE8P\x90)")
DECOMPRESS = "Decompress it: tars, tables and lists are read as they are."
HEAD = 10  # bytes that tell


def has_compressed_suffix(name: str) -> bool:
    """Whether ``name`` ends as that of a compressed file does."""
    return name.lower().endswith(_SUFFIXES)


def begins_compressed(head: bytes) -> bool:
    """Whether a file with the first bytes ``head`` [HEAD] is compressed."""
    return _BEGINS.match(head) is not None


def refuse_compressed(name: str) -> None:
    """Raise AlignDetError when ``name`` is that of a compressed file."""
    if has_compressed_suffix(name):
        raise AlignDetError(f"{name} is compressed. {DECOMPRESS}")
