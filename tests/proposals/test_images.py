"""The guarded decode: what comes out, and what is refused and why."""

import io
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from proposals.dataset.layout import _EXTENSIONS, image_extension
from proposals.errors import AlignDetError
from proposals.images import (
    IMAGE_SUFFIXES,
    ImageRejected,
    decode_bgr,
    has_image_suffix,
    resize_max_side,
    upright_size,
)
from proposals.jpeg_scans import MAX_SCANS, has_too_many_scans
from tests.attacks.images import chunk, scans

_RNG = np.random.default_rng(7)
_RGB = _RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)


def _encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _png(array, **options):
    return _encode(Image.fromarray(array), "PNG", **options)


def _png_header(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def _reason(data, **options):
    with pytest.raises(ImageRejected) as caught:
        decode_bgr(data, **options)
    assert caught.value.stage == "decode"
    return caught.value.reason


def test_colour_images_come_out_as_bgr():
    image = decode_bgr(_png(_RGB))
    assert np.array_equal(image.bgr, _RGB[:, :, ::-1])
    assert (image.width, image.height, image.orientation, image.format) == (20, 12, 1, "PNG")
    assert image.bgr.flags.c_contiguous


def test_jpeg_is_decoded_like_opencv_does():
    smooth = cv2.GaussianBlur(np.kron(_RGB, np.ones((8, 8, 1), np.uint8)), (0, 0), 4)
    data = _encode(Image.fromarray(smooth), "JPEG", quality=95)
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(decode_bgr(data).bgr.astype(int) - theirs).max() <= 2


# stored[k] shows as `up` when a viewer follows EXIF orientation k (TIFF 6.0: where row 0 and column 0 are).
_STORED = {
    1: lambda up: up,
    2: lambda up: up[:, ::-1],
    3: lambda up: up[::-1, ::-1],
    4: lambda up: up[::-1],
    5: lambda up: up.transpose(1, 0, 2),
    6: lambda up: np.rot90(up, 1),
    7: lambda up: up[::-1, ::-1].transpose(1, 0, 2),
    8: lambda up: np.rot90(up, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", _STORED)
def test_every_exif_orientation_comes_out_upright(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](_RGB)))
    data = _encode(stored, kind, exif=exif)
    image = decode_bgr(data)
    assert np.array_equal(image.bgr[:, :, ::-1], _RGB)
    assert (image.width, image.height, image.orientation) == (20, 12, orientation)
    (tmp_path / "stored").write_bytes(data)
    assert upright_size(tmp_path / "stored") == (20, 12)


def test_an_orientation_out_of_range_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 99
    assert decode_bgr(_png(_RGB, exif=exif)).orientation == 1


_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def _with_xmp(kind):
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", _XMP.decode())
        return _png(_RGB, pnginfo=info)
    if kind == "TIFF":
        return _encode(Image.fromarray(_RGB), kind, tiffinfo={700: _XMP})
    return _encode(Image.fromarray(_RGB), kind, xmp=_XMP)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_that_xmp_alone_has_turns_nothing(kind, tmp_path):
    data = _with_xmp(kind)
    assert _XMP in data
    image = decode_bgr(data)
    assert (image.width, image.height, image.orientation) == (20, 12, 1)
    (tmp_path / "image").write_bytes(data)
    assert upright_size(tmp_path / "image") == (20, 12)


def test_an_orientation_that_is_no_whole_number_is_ignored():
    fraction = struct.pack("<HIIII", 5, 1, 26, 0, 0)[:10] + bytes(4) + struct.pack("<II", 6, 1)
    exif = b"Exif\0\0II*\0" + struct.pack("<IHH", 8, 1, 0x0112) + fraction
    image = decode_bgr(_encode(Image.fromarray(_RGB), "JPEG", exif=exif))
    assert (image.width, image.height, image.orientation) == (20, 12, 1)


def _gray_tiff(data, width, bits, photometric):
    """One line of gray: ``data`` as stored."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric)]
    tags += [(273, 8), (277, 1), (278, 1), (279, len(data))]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + fields + bytes(4)
    )


def test_gray_of_twelve_bits_is_scaled_from_twelve():
    data = _gray_tiff(bytes.fromhex("000 001 800 fff".replace(" ", "")), 4, 12, photometric=1)
    assert decode_bgr(data).bgr[0, :, 0].tolist() == [0, 0, 128, 255]


def test_sixteen_bit_gray_whose_zero_is_white_is_no_negative():
    stored = np.array([0, 257, 65535], "<u2").tobytes()
    assert decode_bgr(_gray_tiff(stored, 3, 16, photometric=0)).bgr[0, :, 0].tolist() == [255, 254, 0]
    assert decode_bgr(_gray_tiff(stored, 3, 16, photometric=1)).bgr[0, :, 0].tolist() == [0, 1, 255]


def test_transparent_gray_of_sixteen_bits_lies_over_white():
    values = np.array([[0, 256, 257]], dtype=np.uint16)
    assert decode_bgr(_png(values, transparency=256)).bgr[0, :, 0].tolist() == [0, 255, 1]


@pytest.mark.parametrize(("alpha", "shown"), [((0, 0), [40, 40]), ((0, 255), [255, 40])])
def test_a_bmp_whose_alpha_is_all_zero_has_none(alpha, shown):
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks
    pixels = b"".join(bytes([40, 50, 60, value]) for value in alpha)
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + 8, 0, 0, 14 + 108) + head.ljust(108, b"\0") + pixels
    assert decode_bgr(data).bgr[0, :, 0].tolist() == shown


def test_sixteen_bit_gray_is_scaled_not_cut():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    gray = decode_bgr(_png(values)).bgr[0, :, 0]
    assert gray.tolist() == [0, 0, 1, 1, 128, 255]


def test_transparency_lies_over_white():
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = [0, 255, 51]
    assert decode_bgr(_png(rgba)).bgr[0, :, 0].tolist() == [255, 0, 204]


def test_transparent_palette_lies_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode_bgr(_encode(image, "PNG", transparency=0)).bgr[0].tolist() == [
        [255, 255, 255],
        [50, 100, 200],
    ]


def test_cmyk_becomes_the_colour_it_prints():
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    blue, green, red = decode_bgr(_encode(flat, "JPEG", quality=100)).bgr[8, 8]
    assert red > 200
    assert max(blue, green) < 50


def test_only_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "lime", "blue")]
    data = _encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_bgr(data).bgr[0, 0].tolist() == [0, 0, 255]


def test_what_is_no_image_is_refused():
    assert _reason(b"") == "empty_file"
    assert _reason(b"just text\n" * 50) == "not_an_image"
    assert _reason(_encode(Image.new("F", (4, 4)), "TIFF")) == "unsupported_pixels"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_the_first_bytes_of_an_image_are_a_corrupt_one(kind):
    assert _reason(_encode(Image.fromarray(_RGB), kind)[:14]) in ("corrupt", "truncated")


def test_a_tiff_that_cannot_be_opened_is_corrupt_or_has_pixels_that_are_not_read():
    squeezed = _encode(Image.fromarray(_RGB), "TIFF", compression="tiff_lzw")
    assert _reason(squeezed[:-1]) == "corrupt"
    colours_of_floats = cv2.imencode(".tiff", _RGB.astype(np.float32))[1].tobytes()
    assert _reason(colours_of_floats) == "unsupported_pixels"


def test_formats_that_run_programs_are_not_opened():
    assert _reason(_encode(Image.new("RGB", (8, 8)), "EPS")) == "not_an_image"


def test_a_rejection_travels_between_processes():
    sent = pickle.loads(pickle.dumps(ImageRejected("decode", "truncated", "OSError")))
    assert (sent.stage, sent.reason, sent.detail) == ("decode", "truncated", "OSError")


def test_the_pixel_limit_is_checked_on_the_header_alone():
    assert _reason(_png_header(20000, 20000)) == "too_many_pixels"
    assert _reason(_png_header(15000, 10000), max_pixels=10**8) == "too_many_pixels"
    assert _reason(_png(_RGB), max_pixels=239) == "too_many_pixels"
    assert decode_bgr(_png(_RGB), max_pixels=240).width == 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_file_is_an_error_wherever_it_is_cut(kind):
    whole = _encode(Image.fromarray(np.kron(_RGB, np.ones((8, 8, 1), np.uint8))), kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        assert _reason(whole[: int(len(whole) * share)]) in {"truncated", "corrupt", "not_an_image"}


@pytest.mark.parametrize("damage", ["a byte", "a sector", "the rest"])
def test_a_png_whose_pixels_were_changed_is_refused_wherever_that_is(damage):
    rng = np.random.default_rng(0)
    whole = _png(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    first = whole.index(b"IDAT") + 4
    for place in rng.integers(first, len(whole) - 600, 12).tolist():
        broken = bytearray(whole)
        if damage == "a byte":
            broken[place] ^= 0x55
        else:
            end = place + 512 if damage == "a sector" else len(whole)
            broken[place:end] = bytes(end - place)
        assert _reason(bytes(broken)) in {"corrupt", "truncated"}
    assert decode_bgr(whole).width == 80


def test_a_png_of_many_chunks_and_with_text_behind_its_pixels_is_sound():
    image = Image.fromarray(np.kron(_RGB, np.ones((40, 40, 1), np.uint8)))
    noise = np.random.default_rng(1).integers(0, 256, (480, 800, 3), dtype=np.uint8)
    info = PngInfo()
    info.add_text("author", "nobody", zip=True)
    for picture in (image, Image.fromarray(noise)):
        assert np.array_equal(decode_bgr(_encode(picture, "PNG", pnginfo=info)).bgr[:, :, ::-1], picture)
    assert _encode(Image.fromarray(noise), "PNG").count(b"IDAT") > 1


@pytest.mark.parametrize("values", [[0, 255], [0, 70000], [-5, 9]])
def test_gray_without_a_known_range_is_refused_whatever_is_in_it(values):
    image = Image.fromarray(np.array([values], dtype=np.int32))
    assert image.mode == "I"
    assert _reason(_encode(image, "TIFF")) == "unsupported_pixels"


def test_a_jpeg_may_go_over_its_image_as_often_as_the_limit_and_not_once_more():
    own = scans(0).count(b"\xff\xda")
    assert not has_too_many_scans(scans(MAX_SCANS - own))
    assert has_too_many_scans(scans(MAX_SCANS + 1 - own))


def test_flipped_bytes_never_escape_as_another_error():
    whole = _png(_RGB)
    reasons = set()
    for place in range(8, len(whole), 3):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        try:
            decode_bgr(bytes(broken))
        except ImageRejected as error:
            reasons.add(error.reason)
    assert reasons
    assert reasons <= {"truncated", "corrupt", "not_an_image", "too_many_pixels", "unsupported_pixels"}


def test_memory_that_ends_while_colours_are_turned_is_not_the_images_fault(monkeypatch):
    full = cv2.error("out of memory")
    full.code = cv2.Error.StsNoMem

    def convert(*_):
        raise full

    monkeypatch.setattr(cv2, "cvtColor", convert)
    with pytest.raises(MemoryError):
        decode_bgr(_png(_RGB))


def test_the_process_wide_tolerance_for_broken_files_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(AlignDetError, match="LOAD_TRUNCATED_IMAGES"):
        decode_bgr(_png(_RGB))


@pytest.mark.parametrize("shape", [(400, 1000), (1000, 400), (1000, 3), (512, 512), (100, 50)])
def test_resize_keeps_boxes_in_place(shape):
    small, scale_x, scale_y = resize_max_side(np.zeros((*shape, 3), np.uint8), 512)
    assert max(small.shape[:2]) == min(512, max(shape))
    assert small.shape[1] * scale_x == pytest.approx(shape[1])
    assert small.shape[0] * scale_y == pytest.approx(shape[0])


def test_what_is_listed_as_an_image_is_what_tars_name_so():
    spelled = {image_extension(f"a{suffix}") for suffix in IMAGE_SUFFIXES}
    assert "bin" not in spelled
    assert {image_extension(f"a.{name}") for name in _EXTENSIONS} == spelled
    assert all(has_image_suffix(f"A.{name.upper()}") for name in _EXTENSIONS)
