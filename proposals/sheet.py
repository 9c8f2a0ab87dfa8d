"""A contact sheet: a few images of a dataset with their best boxes, as one picture."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from proposals.boxes import scale
from proposals.dataset import ProposalDataset, Record
from proposals.dataset.as_mined import decoded_as_mined
from proposals.errors import AlignDetError
from proposals.images import Bgr, ImageRejected, resize_max_side
from proposals.paths import name_of

TILE_WIDTH, TILE_HEIGHT, CAPTION = 400, 300, 34
MARGIN, HEADER = 16, 60
_LONGEST = 400

_BACKGROUND = (17, 19, 24)
_PANEL = (27, 30, 38)
_TEXT = (229, 231, 235)
_MUTED = (139, 147, 161)

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Fonts:
    title: Font
    text: Font
    small: Font


def contact_sheet(dataset: ProposalDataset, count: int, top: int) -> Image.Image:
    """``count`` evenly spaced images of ``dataset`` with their ``top`` best boxes; colour tells the rank.

    Raises ValueError when the dataset is empty, ImageRejected when an image no longer decodes.
    """
    if not len(dataset):
        raise ValueError("an empty dataset has no picture")
    records = [dataset[i] for i in evenly_spaced(len(dataset), count)]
    fonts = _Fonts(ImageFont.load_default(22), ImageFont.load_default(15), ImageFont.load_default(13))
    columns, rows = _grid(len(records))
    width = MARGIN + columns * (TILE_WIDTH + MARGIN)
    height = HEADER + rows * (TILE_HEIGHT + CAPTION + MARGIN)
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    _draw_header(sheet, dataset, top, fonts)
    for place, record in enumerate(records):
        left = MARGIN + place % columns * (TILE_WIDTH + MARGIN)
        upper = HEADER + place // columns * (TILE_HEIGHT + CAPTION + MARGIN)
        sheet.paste(_tile(record, top, fonts), (left, upper))
    return sheet


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most ``count`` different indices below ``length``, from the first to the last, evenly spaced."""
    return sorted({int(i) for i in np.linspace(0, length - 1, min(count, length)).round()})


def rank_colors(count: int) -> list[Color]:
    """``count`` RGB colours from warm (best) to cold (last), from OpenCV's turbo map."""
    steps = np.linspace(225, 35, max(count, 1)).round().astype(np.uint8)[None]
    bgr = cv2.applyColorMap(steps, cv2.COLORMAP_TURBO)[0]
    return [(int(r), int(g), int(b)) for b, g, r in bgr[:count]]


def _grid(count: int) -> tuple[int, int]:
    # As square as four columns allow, and where it can be, without a hole in the last row.
    widest = min(4, count)
    columns = min(range(max(1, widest - 1), widest + 1), key=lambda c: (-count % c, -c))
    return columns, -(-count // columns)


def _tile(record: Record, top: int, fonts: _Fonts) -> Image.Image:
    picture, boxes = _thumbnail(record, top)
    left, upper = (TILE_WIDTH - picture.width) // 2, (TILE_HEIGHT - picture.height) // 2
    _draw_boxes(picture, boxes)
    tile = Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT + CAPTION), _PANEL)
    tile.paste(picture, (left, upper))
    draw = ImageDraw.Draw(tile)
    count = f"{min(top, len(record.rank))} of {len(record.rank)} boxes"
    room = TILE_WIDTH - 36 - draw.textlength(count, fonts.small)
    middle = TILE_HEIGHT + CAPTION // 2
    name = _shorten(_printable(record.uri), room, draw, fonts.text)
    draw.text((10, middle), name, _TEXT, fonts.text, anchor="lm")
    draw.text((TILE_WIDTH - 10, middle), count, _MUTED, fonts.small, anchor="rm")
    return tile


def _thumbnail(record: Record, top: int) -> tuple[Image.Image, npt.NDArray[np.float32]]:
    # The dataset holds only images that passed the pixel limit of its own recipe.
    try:
        image = decoded_as_mined(record, record.image_bytes(), max(1, record.width * record.height))
    except ImageRejected as error:
        raise AlignDetError(
            f"image {record.uri} cannot be shown: {error}. It was changed or damaged since it was mined: "
            "`aligndet verify --deep` names all such images"
        ) from error
    fitted, scale_x, scale_y = _fit(image.bgr)
    boxes = scale(record.boxes[:top], scale_x, scale_y)
    return Image.fromarray(np.ascontiguousarray(fitted[:, :, ::-1])), boxes


def _fit(bgr: Bgr) -> tuple[Bgr, float, float]:
    height, width = bgr.shape[:2]
    factor = min(TILE_WIDTH / width, TILE_HEIGHT / height)
    if factor < 1:
        small, back_x, back_y = resize_max_side(bgr, max(1, int(factor * max(width, height))))
        return small, 1 / back_x, 1 / back_y
    size = max(1, int(width * factor)), max(1, int(height * factor))
    large = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    return large, size[0] / width, size[1] / height


def _draw_boxes(picture: Image.Image, boxes: npt.NDArray[np.float32]) -> None:
    draw = ImageDraw.Draw(picture)
    colors = rank_colors(len(boxes))
    for (x1, y1, x2, y2), color in reversed(list(zip(boxes.tolist(), colors, strict=True))):
        corners = (round(x1), round(y1), max(round(x1), round(x2) - 1), max(round(y1), round(y2) - 1))
        draw.rectangle(corners, outline=color, width=2)


def _draw_header(sheet: Image.Image, dataset: ProposalDataset, top: int, fonts: _Fonts) -> None:
    draw = ImageDraw.Draw(sheet)
    totals, recipe = dataset.manifest.totals, dataset.manifest.recipe
    middle = HEADER // 2
    name = _printable(name_of(dataset.root))
    draw.text((MARGIN, middle), name, _TEXT, fonts.title, anchor="lm")
    title = draw.textlength(name, fonts.title)
    how = f"{recipe.mode} at {recipe.max_side} px, {recipe.filter}"
    facts = f"{totals.images:,} images, {totals.proposals:,} boxes   {how}"
    legend = _draw_legend(draw, sheet.width - MARGIN, middle, top, fonts)
    left = MARGIN + title + 18
    draw.text(
        (left, middle + 2),
        _shorten(facts, legend - left - 18, draw, fonts.text),
        _MUTED,
        fonts.text,
        anchor="lm",
    )


def _draw_legend(draw: ImageDraw.ImageDraw, right: float, middle: int, top: int, fonts: _Fonts) -> float:
    colors = rank_colors(top)
    last, first = f"rank {top}", "1"
    draw.text((right, middle), last, _MUTED, fonts.small, anchor="rm")
    end = right - draw.textlength(last, fonts.small) - 8
    width = 120.0
    for place, color in enumerate(colors):
        x = end - width + width * place / len(colors)
        draw.rectangle((x, middle - 5, x + width / len(colors), middle + 5), fill=color)
    draw.text((end - width - 8, middle), first, _MUTED, fonts.small, anchor="rm")
    return end - width - 8 - draw.textlength(first, fonts.small)


def _printable(name: str) -> str:
    # Pillow measures no text of several lines, and shortening a name takes time quadratic in its length.
    return "".join(c if c.isprintable() else "\ufffd" for c in name[:_LONGEST])


def _shorten(text: str, room: float, draw: ImageDraw.ImageDraw, font: Font) -> str:
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "...", font) > room:
        text = text[:-1]
    return text + "..."
