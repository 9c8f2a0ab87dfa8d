"""The one guarded way from untrusted bytes to an upright BGR uint8 image.

Mining and training both decode here, so a box always refers to the same pixels.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from proposals.errors import AlignDetError
from proposals.jpeg_scans import MAX_SCANS, has_too_many_scans
from proposals.orientation import FIRST_ON_ITS_SIDE, UPRIGHT, exif_orientation, forget_xmp
from proposals.png_checksums import has_sound_checksums, without_what_follows
from proposals.sixteen_bit import as_eight_bit

Bgr = npt.NDArray[np.uint8]

# Counts the changes of what pixels a file becomes: a dataset's images are all of one decoding.
DECODING = "2"

# Pillow warns above the first and refuses above the second (twice as many); staying below keeps its globals untouched.
DEFAULT_MAX_PIXELS = 89_478_485
MAX_PIXELS_CEILING = 178_956_970

# Of files in which an image is looked for.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
)

# Images of kinds that are not read: listed all the same, so that they are rejected and not passed over.
_NOT_READ = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2"})

# Never all that Pillow knows: opening an EPS, for one, runs Ghostscript on it.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# A BMP has but two bytes for it, and text may begin with them.
_BEGINS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
}
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_EIGHT_BIT = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "La", "RGBA", "RGBa")


def has_image_suffix(name: str) -> bool:
    """Whether ``name`` ends as an image file does."""
    return _suffix(name) in IMAGE_SUFFIXES


def is_listed(name: str) -> bool:
    """Whether a source that holds a file of this ``name`` has it as an image; it may be of a kind that is not read."""
    suffix = _suffix(name)
    return suffix in IMAGE_SUFFIXES or suffix in _NOT_READ


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a third of Path's time, once an image


class ImageRejected(AlignDetError):  # noqa: N818 - a verdict on one image, handled as data
    """One image gives no row.

    stage: where it failed (read, decode, propose). reason: a stable word to group by, such as ``truncated``.
    detail: a sentence for people, free of addresses and machine paths.
    """

    def __init__(self, stage: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{stage}: {reason}" + (f" ({detail})" if detail else ""))
        self.stage, self.reason, self.detail = stage, reason, detail

    def __reduce__(self) -> tuple[type["ImageRejected"], tuple[str, str, str]]:
        # Without it an instance cannot come back from another process: Exception would pass one argument.
        return type(self), (self.stage, self.reason, self.detail)


@dataclass(frozen=True)
class DecodedImage:
    """An upright image.

    bgr: [height, width, 3] uint8, contiguous. orientation: the file's EXIF orientation, already applied
    (1 = stored upright); with 5 to 8 the stored width and height are the swapped ones. format: Pillow's name.
    """

    bgr: Bgr
    width: int
    height: int
    orientation: int
    format: str


def decode_bgr(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> DecodedImage:
    """Decode the first frame of ``data`` (JPEG, PNG, WebP, GIF, BMP or TIFF) to upright BGR.

    The size in the header is checked against ``max_pixels`` before any pixel is decoded. EXIF orientation is
    applied; gray of 12 and 16 bits is scaled to 8 (v / 16.06, v / 257), transparency is laid over white; CMYK, palette
    and gray become colour. Raises ImageRejected(stage "decode") for everything else, a truncated file included: no
    image is ever returned in part. What was changed inside of a file of its full length, as zeros where its end was,
    is only certain to be found in a PNG: the other formats have no checksums.
    """
    if not data:
        raise ImageRejected("decode", "empty_file", "0 bytes")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise AlignDetError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so broken files would pass as half-gray "
            "images. Set it back to False before reading images."
        )
    with _rejecting_broken_bytes(data), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        pixels = image.width * image.height
        if pixels > max_pixels:
            detail = f"{image.width} x {image.height} = {pixels} pixels, the limit is {max_pixels}"
            raise ImageRejected("decode", "too_many_pixels", detail)
        if image.format in ("JPEG", "MPO") and has_too_many_scans(data):
            raise ImageRejected("decode", "too_many_scans", f"more than {MAX_SCANS} times over the image")
        if image.format == "PNG" and not has_sound_checksums(data):
            raise ImageRejected("decode", "corrupt", "a checksum of its pixels is wrong")
        try:
            return _decode(image)
        except (AlignDetError, MemoryError):
            raise
        except Exception:
            if image.format != "PNG":
                raise
    # What stands behind the pixels spoils no image: viewers do not read it either.
    with (
        _rejecting_broken_bytes(data),
        Image.open(io.BytesIO(without_what_follows(data)), formats=("PNG",)) as image,
    ):
        return _decode(image)


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height, px, of the image in ``path`` as `decode_bgr` would give it; reads its header alone.

    Raises ImageRejected(stage "decode") when there is no such header, OSError when the file cannot be read.
    """
    with path.open("rb") as file, _rejecting_broken_bytes(), Image.open(file, formats=_FORMATS) as image:
        # Pillow says the size of a TIFF upright already.
        turned = image.format != "TIFF" and exif_orientation(image) >= FIRST_ON_ITS_SIDE
        return (image.height, image.width) if turned else (image.width, image.height)


def resize_max_side(bgr: Bgr, max_side: int) -> tuple[Bgr, float, float]:
    """Shrink ``bgr`` so that its longer side is ``max_side`` px; a smaller image is returned as it is.

    Returns (resized, scale_x, scale_y): multiply boxes of the resized image by the scales to get original pixels.
    """
    height, width = bgr.shape[:2]
    longest = max(width, height)
    if longest <= max_side:
        return bgr, 1.0, 1.0
    size = max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest))
    resized = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8), width / size[0], height / size[1]


def ran_out_of_memory(error: Exception) -> bool:
    """Whether this is what OpenCV raises for MemoryError."""
    return isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem


@contextmanager
def _rejecting_broken_bytes(data: bytes = b"") -> Iterator[None]:
    # Pillow's decoders raise almost anything on hostile bytes; its messages may hold object addresses, so the
    # stable part of a rejection is our word and the exception's type.
    try:
        yield
    except (AlignDetError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _why_not_opened(data) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected("decode", "too_many_pixels", str(error)) from error
    except Exception as error:
        if ran_out_of_memory(error):
            raise MemoryError from error
        truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise ImageRejected(
            "decode", "truncated" if truncated else "corrupt", type(error).__name__
        ) from error


def _why_not_opened(data: bytes) -> ImageRejected:
    begun = next((name for name, pattern in _BEGINS.items() if pattern.match(data)), None)
    if begun is None:
        return ImageRejected("decode", "not_an_image", f"none of {', '.join(_FORMATS)}")
    if begun == "TIFF" and _has_unknown_pixels(data):
        return ImageRejected("decode", "unsupported_pixels", "a TIFF of a pixel type that is not read")
    return ImageRejected("decode", "corrupt", f"it begins as a {begun} file does, and goes on otherwise")


def _has_unknown_pixels(data: bytes) -> bool:
    try:
        TiffImageFile(io.BytesIO(data))
    except Exception as error:  # the one that Image.open keeps to itself
        return str(error) == "unknown pixel mode"
    return False


def _decode(image: Image.Image) -> DecodedImage:
    # Pillow turns TIFF files upright itself while loading.
    turned = exif_orientation(image) if image.format == "TIFF" else None
    forget_xmp(image)
    image.load()
    orientation = turned or exif_orientation(image)
    rgb = _to_rgb(image)
    if turned is None and orientation in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[orientation])
    bgr = np.asarray(cv2.cvtColor(np.asarray(rgb, dtype=np.uint8), cv2.COLOR_RGB2BGR), dtype=np.uint8)
    return DecodedImage(bgr, rgb.width, rgb.height, orientation, str(image.format))


def _to_rgb(image: Image.Image) -> Image.Image:
    # Some versions of Pillow open 16-bit gray of a PNG as 32-bit; of other formats nobody knows what white is.
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format == "PNG"):
        return as_eight_bit(image).convert("RGB")
    if image.mode not in _EIGHT_BIT:
        why = "32-bit gray without a known range" if image.mode == "I" else f"pixel type {image.mode}"
        raise ImageRejected("decode", "unsupported_pixels", why)
    if image.has_transparency_data and not _has_unused_alpha(image):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _has_unused_alpha(image: Image.Image) -> bool:
    # Programs that write such a BMP leave the fourth byte of a pixel 0, and readers take no notice of it.
    return image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
