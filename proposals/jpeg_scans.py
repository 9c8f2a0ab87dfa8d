"""How often a progressive JPEG goes over its image: a kilobyte can ask for it thirty times, a megabyte for hours."""

import re

# What libjpeg-turbo's own fuzzers allow; photographs have about ten.
MAX_SCANS = 500
_SCAN, _NO_LENGTH = 0xDA, {0x01, *range(0xD0, 0xD9)}
# Inside a scan 0xFF stands before 0 (itself) and before restarts; anything else ends the scan.
_NEXT = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def has_too_many_scans(data: bytes) -> bool:
    """Whether the JPEG ``data`` has more than MAX_SCANS scans; what embedded or appended files have does not count."""
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return False
    scans, place = 0, 2
    while (found := _NEXT.search(data, place)) is not None:
        marker, place = data[found.end() - 1], found.end()
        if marker == 0xD9:
            break
        if marker not in _NO_LENGTH:
            place += int.from_bytes(data[place : place + 2], "big")
        scans += marker == _SCAN
        if scans > MAX_SCANS:
            return True
    return False
