"""Which way up an image is stored, by the EXIF of its file and by nothing else."""

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FIRST_ON_ITS_SIDE = 5  # with it and above width and height are swapped
_TAG = 0x0112
_RAW = "Raw profile type exif"


def exif_orientation(image: Image.Image) -> int:
    """1 to 8, as in TIFF 6.0; 1 where the EXIF has none or says something else. Loads a PNG, whose EXIF may be last.

    Not `getexif`, which takes the orientation out of XMP where EXIF has none: programs that turn an image leave it
    there, and neither OpenCV nor browsers look at it.
    """
    try:
        if isinstance(image, TiffImageFile):
            value = image.tag_v2.get(_TAG, 1)
            return int(value) if value in UPRIGHT else 1  # of any type of number: Pillow turns by it
        value = _exif(image).get(_TAG, 1)
    except Exception:
        return 1  # broken EXIF beside sound pixels: viewers show the image as stored
    return value if isinstance(value, int) and value in UPRIGHT else 1


def forget_xmp(image: Image.Image) -> None:
    """Before a TIFF is loaded, which Pillow turns upright: by its own tag alone."""
    image.info.pop("xmp", None)


def _exif(image: Image.Image) -> Image.Exif:
    if image.format == "PNG":
        image.load()
    data = image.info.get("exif")
    if data is None and _RAW in image.info:
        data = bytes.fromhex("".join(image.info[_RAW].split("\n")[3:]))
    exif = Image.Exif()
    exif.load(data or b"")
    return exif
