"""Tars made by hand, whose headers say what no tar program writes."""

import tarfile

END = bytes(1024)


def header(
    name: str, size: int = 0, kind: bytes = b"0", raw_size: bytes | None = None, raw_name: bytes = b""
) -> bytes:
    """One header block with a fitting checksum. raw_size, raw_name: the bytes of these fields, as they are."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    block[0 : len(raw_name)] = raw_name
    if raw_size is not None:
        block[124:136] = raw_size
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, data: bytes = b"abc", kind: bytes = b"0", **raw: bytes) -> bytes:
    """A header and its data."""
    return header(name, len(data), kind, **raw) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def ustar(name: str, data: bytes) -> bytes:
    """A member as POSIX has it and the datasets' tars do: no GNU magic."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def negative(size: int) -> bytes:
    """The size field of a number below zero, in base 256."""
    return b"\xff" + (256**11 + size).to_bytes(11, "big")


def giant(size: int) -> bytes:
    """The size field of a number that octal digits cannot hold."""
    return b"\x80" + size.to_bytes(11, "big")


def pax(*records: bytes) -> bytes:
    """An extended header of ``key=value`` records."""
    lines = b""
    for record in records:
        length = len(record) + 3
        while len(b"%d %s\n" % (length, record)) != length:
            length += 1
        lines += b"%d %s\n" % (length, record)
    return member("pax", lines, b"x")
