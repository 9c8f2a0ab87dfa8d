"""An image as it was when its boxes were found."""

from proposals.dataset.reader import Record
from proposals.errors import AlignDetError
from proposals.images import DecodedImage, decode_bgr


class OtherImageError(AlignDetError):
    """Not the image that was mined."""


def decoded_as_mined(record: Record, data: bytes, max_pixels: int) -> DecodedImage:
    """The image of ``record`` from the bytes of its file.

    Raises ImageRejected when it does not decode, and OtherImageError when it is of another size, or turned otherwise,
    than when it was mined: its boxes would lie elsewhere.
    """
    image = decode_bgr(data, max_pixels=max_pixels)
    found = image.width, image.height, image.orientation
    if found != (record.width, record.height, record.orientation):
        raise OtherImageError(
            f"image {record.uri} is {image.width} x {image.height} px, its boxes are for {record.width} x "
            f"{record.height} (EXIF orientations {image.orientation} and {record.orientation}): it is another one than "
            "was mined, or was turned by its XMP, as in older versions. `aligndet verify --deep` names all such images"
        )
    return image
