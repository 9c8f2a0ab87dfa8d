"""Hostile image files, made byte by byte: a name to (bytes, what must come out)."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

Maker = Callable[[], bytes]
_RGB = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
_EXIF = b"Exif\0\0MM\0*\0\0\0\x08"


def encoded(image: Image.Image = _RGB, kind: str = "PNG", **options) -> bytes:
    """The file of an image."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def _png_with(extra: bytes) -> bytes:
    whole = encoded()
    return whole[:33] + extra + whole[33:]


def _patched(data: bytes, place: int, values: bytes) -> bytes:
    return data[:place] + values + data[place + len(values) :]


def _jpeg_of(width: int, height: int) -> bytes:
    data = encoded(kind="JPEG")
    return _patched(data, data.find(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def _webp_of(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + encoded(kind="WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(tags: list[tuple[int, int, int, int]], body: bytes = bytes(400)) -> bytes:
    """A TIFF of one directory, which names itself as the next."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 8) + body


def _gray(width: int, height: int, packing: int = 1, *more: tuple[int, int, int, int]) -> bytes:
    plain = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, packing), (262, 3, 1, 1)]
    strip = [(273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 100)]
    return tiff(sorted([*plain, *(more or strip)]))


def _exif(*entries: tuple[int, int, int, int]) -> bytes:
    packed = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return _EXIF + struct.pack(">H", len(entries)) + packed + struct.pack(">I", 8)


def scans(count: int) -> bytes:
    """A progressive JPEG that goes ``count`` times over 2000 x 2000 pixels, in a few bytes each time."""
    base = encoded(Image.new("L", (16, 16)), "JPEG", progressive=True)
    base = _patched(base, base.find(b"\xff\xc2") + 5, struct.pack(">HH", 2000, 2000))
    one_code = b"\xff\xc4" + struct.pack(">H", 20) + b"\x10\x01" + bytes(15) + b"\xe0"
    scan = b"\xff\xda" + struct.pack(">HBBB", 8, 1, 1, 0) + bytes([1, 63, 1]) + bytes(10)
    return base[: base.rfind(b"\xff\xd9")] + one_code + scan * count + b"\xff\xd9"


def _animated(kind: str) -> bytes:
    return encoded(_RGB, kind, save_all=True, append_images=[_RGB.rotate(i) for i in range(1, 300)])


def _endless_gif() -> bytes:
    frames = encoded(Image.new("P", (9, 9)), "GIF", save_all=True, append_images=[Image.new("P", (9, 9), 1)])
    start = frames.find(b"!\xff") if b"!\xff" in frames else frames.find(b",")
    return frames[:-1] + frames[start:-1] * 3000 + b";"


_TOO_MANY = "decode: too_many_pixels"
_BOMB = zlib.compress(bytes(300 * 2**20))

# What a viewer would show comes out, whatever else is in the file.
SHOWN: dict[str, tuple[Maker, tuple[int, int, int]]] = {
    "png_pixels_that_go_on": (lambda: _png(10, 10, chunk(b"IDAT", _BOMB)), (10, 10, 3)),
    "png_text_bomb_behind_the_pixels": (
        lambda: encoded()[:-12] + chunk(b"zTXt", b"a\0\0" + _BOMB) + encoded()[-12:],
        (40, 60, 3),
    ),
    "png_icc_junk": (lambda: _png_with(chunk(b"iCCP", b"a\0\0junk")), (40, 60, 3)),
    "png_exif_junk": (lambda: _png_with(chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 100)), (40, 60, 3)),
    "jpeg_icc_junk": (lambda: encoded(kind="JPEG", icc_profile=b"junk" * 50_000), (40, 60, 3)),
    "exif_that_is_its_own_next": (
        lambda: encoded(kind="JPEG", exif=_exif((0x14A, 4, 1, 8), (0x8769, 4, 1, 8), (0x8825, 4, 1, 8))),
        (40, 60, 3),
    ),
    "exif_of_four_billion_values": (
        lambda: encoded(kind="JPEG", exif=_exif((0x10F, 2, 2**32 - 1, 0), (0x112, 3, 2**31, 8))),
        (40, 60, 3),
    ),
    "exif_orientation_is_a_word": (
        lambda: encoded(kind="JPEG", exif=_exif((0x112, 2, 4, 0x36000000))),
        (40, 60, 3),
    ),
    "exif_orientation_is_no_number": (
        lambda: encoded(kind="JPEG", exif=_exif((0x112, 11, 1, 0x7FC00000))),
        (40, 60, 3),
    ),
    "gif_of_three_thousand_frames": (_endless_gif, (9, 9, 3)),
    "animated_webp": (lambda: _animated("WEBP"), (40, 60, 3)),
    "animated_png": (lambda: _animated("PNG"), (40, 60, 3)),
    "tiff_that_is_its_own_next": (lambda: _gray(10, 10), (10, 10, 3)),
    "jpeg_that_is_a_zip_too": (lambda: encoded(kind="JPEG") + b"PK\3\4" + bytes(1000), (40, 60, 3)),
    "png_that_is_a_page_too": (
        lambda: _png_with(chunk(b"tEXt", b"c\0<script>alert(1)</script>")),
        (40, 60, 3),
    ),
    "jpeg_with_a_film_behind_it": (
        lambda: encoded(kind="JPEG") + b"\xff\xda\0\x0c" * 4000,
        (40, 60, 3),
    ),
    "progressive_jpeg_of_400_scans": (lambda: scans(400), (2000, 2000, 3)),
}

REFUSED: dict[str, tuple[Maker, str]] = {
    "png_bomb": (lambda: _png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(9)))), _TOO_MANY),
    "jpeg_bomb": (lambda: _jpeg_of(65_000, 65_000), _TOO_MANY),
    "gif_bomb": (
        lambda: _patched(encoded(Image.new("P", (9, 9)), "GIF"), 6, struct.pack("<HH", 65_535, 65_535)),
        _TOO_MANY,
    ),
    "gif_frame_beyond_its_canvas": (
        lambda: (
            lambda gif: _patched(gif, gif.find(b",") + 1, struct.pack("<HHHH", 60_000, 60_000, 5_000, 5_000))
        )(encoded(Image.new("P", (9, 9)), "GIF")),
        _TOO_MANY,
    ),
    "webp_bomb": (lambda: _webp_of(16_000_000, 200), _TOO_MANY),
    "webp_canvas_of_another_size": (lambda: _webp_of(5_000, 5_000), "decode: corrupt"),
    "tiff_bomb": (lambda: _gray(60_000, 60_000), _TOO_MANY),
    "tiff_of_a_giant_tile": (
        lambda: _gray(
            10,
            10,
            8,
            (277, 3, 1, 1),
            (322, 4, 1, 65_520),
            (323, 4, 1, 65_520),
            (324, 4, 1, 220),
            (325, 4, 1, 9),
        ),
        "decode: corrupt",
    ),
    "tiff_of_a_billion_strips": (
        lambda: tiff(
            [(256, 4, 1, 10), (257, 4, 1, 10), (258, 3, 2**31, 8), (259, 3, 1, 1), (273, 4, 2**30, 200)]
        ),
        "decode: corrupt",
    ),
    "bmp_bomb": (lambda: _patched(encoded(kind="BMP"), 18, struct.pack("<ii", 50_000, 50_000)), _TOO_MANY),
    "bmp_of_negative_width": (
        lambda: _patched(encoded(kind="BMP"), 18, struct.pack("<ii", -5, 5)),
        _TOO_MANY,
    ),
    "bmp_of_the_smallest_height": (
        lambda: _patched(encoded(kind="BMP"), 18, struct.pack("<ii", 60, -(2**31))),
        _TOO_MANY,
    ),
    "png_text_of_100_megabytes": (
        lambda: _png_with(chunk(b"tEXt", b"a\0" + bytes(100 * 2**20))),
        "decode: corrupt",
    ),
    "png_packed_text_bomb": (lambda: _png_with(chunk(b"zTXt", b"a\0\0" + _BOMB)), "decode: corrupt"),
    "png_international_text_bomb": (
        lambda: _png_with(chunk(b"iTXt", b"a\0\1\0\0\0" + _BOMB)),
        "decode: corrupt",
    ),
    "png_many_texts": (
        lambda: _png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1))) * 100),
        "decode: corrupt",
    ),
    "png_icc_bomb": (lambda: _png_with(chunk(b"iCCP", b"a\0\0" + _BOMB)), "decode: corrupt"),
    "png_of_no_pixel": (lambda: _png(0, 0), "decode: corrupt"),
    "bmp_of_no_pixel": (
        lambda: _patched(encoded(kind="BMP"), 18, struct.pack("<ii", 0, 5)),
        "decode: not_an_image",
    ),
    "progressive_jpeg_cut": (
        lambda: encoded(_RGB.resize((600, 400)), "JPEG", progressive=True)[:9000],
        "decode: truncated",
    ),
    "progressive_jpeg_without_end": (lambda: scans(20_000), "decode: too_many_scans"),
    "svg_with_entities": (
        lambda: b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        "decode: not_an_image",
    ),
    "page": (lambda: b"<html><script>alert(1)</script></html>", "decode: not_an_image"),
    "archive": (lambda: b"PK\3\4" + bytes(1000), "decode: not_an_image"),
    "postscript": (lambda: encoded(_RGB, "EPS"), "decode: not_an_image"),
    "nothing": (lambda: b"", "decode: empty_file"),
}
