"""Gray of more than eight bits, as eight."""

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

_BITS, _PHOTOMETRIC = 258, 262  # TIFF 6.0
_WHITE_IS_ZERO = 0


def as_eight_bit(image: Image.Image) -> Image.Image:
    """``image``, loaded, of 9 to 16 bits of gray, in mode L: black is 0, white 255, what is transparent white.

    How many bits a value has, and whether 0 is white, is only in the tags of a TIFF: Pillow gives the values as stored.
    """
    stored = np.asarray(image)
    values = stored.astype(np.uint32)
    white = (1 << _bits(image)) - 1
    values *= 255
    values += white // 2
    values //= white
    gray: npt.NDArray[np.uint8] = values.astype(np.uint8)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO:
        gray = 255 - gray
    if "transparency" in image.info:
        gray[stored == image.info["transparency"]] = 255
    return Image.fromarray(gray)


def _bits(image: Image.Image) -> int:
    return int(image.tag_v2[_BITS][0]) if isinstance(image, TiffImageFile) else 16
