"""Images named by a text or CSV list, or by the ``images`` of a COCO json."""

import csv
import io
import re
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TextIO

from pipeline.sources.base import Source, SourceEntry, as_text
from proposals.convert.json_stream import members
from proposals.errors import AlignDetError
from proposals.fetch import as_spelled
from proposals.image_roots import ImageRoot, Kind, shortened
from proposals.images import ImageRejected
from proposals.paths import is_remote, scheme_of

_COLUMNS = ("uri", "url", "path", "file_name", "filename", "image_path", "image_url", "image", "file")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LOOKED_AT = 100
# Characters: a picture's features beside its name have more than the 131,072 that Python allows.
_LARGEST_CELL = 2**20
# The marks at the beginning of such a file, as `_opened` gives what is no UTF-8.
_UTF16 = ("\\xff\\xfe", "\\xfe\\xff")
_NAMELESS = re.compile(r"(entry|line) [0-9]+ without a name")


@dataclass(frozen=True)
class _Listed(Source):
    path: Path
    root: str

    @property
    def images(self) -> ImageRoot:
        """See `Source`."""
        return ImageRoot(kind=self.kind, root=self.root)

    def read(self, uri: str) -> bytes:
        """See `Source`. A list from elsewhere names nothing on this machine but what is below the root."""
        if _is_nameless(uri, self.path):
            raise ImageRejected("read", "bad_name", "its place in the list holds no name")
        if is_remote(self.path) and PurePosixPath(uri).is_absolute():
            raise ImageRejected(
                "read", "not_allowed", "an absolute path in a list from elsewhere is not read"
            )
        return super().read(uri)

    def entries(self) -> Iterator[SourceEntry]:
        """See `Source`. Sizes are those of local files, -1 for what is elsewhere; empty lines are no images."""
        yield from _sized(self.images, self._names(), self.path)

    @abstractmethod
    def _names(self) -> Iterator[str]:
        """The names as they are written, one an image."""


@dataclass(frozen=True)
class ListSource(_Listed):
    """A line an image: a path below ``root``, a URL, or, in a local list, an absolute path.

    ``path``: of a text file, or of a CSV or TSV file with a header that has one of the columns uri, url, path,
    file_name, filename, image_path, image_url, image, file; the first of these that is there. The order is that
    of the list. A line that may not be read, and a row without a name, are images that are rejected.
    What is named again counts once.
    """

    kind: ClassVar[Kind] = "list"

    def _names(self) -> Iterator[str]:
        with _opened(self.path) as stream:
            delimiter = _DELIMITERS.get(self.path.suffix.lower())
            if delimiter is None:
                yield from (line.rstrip("\r\n") for line in _lines(stream, self.path))
            else:
                yield from _column(stream, delimiter, self.path)


@dataclass(frozen=True)
class CocoSource(_Listed):
    """The ``file_name``, else the ``coco_url``, of every entry of ``images`` in a COCO json, in its order.

    An entry without either is an image that is rejected.
    """

    kind: ClassVar[Kind] = "coco"

    def _names(self) -> Iterator[str]:
        found = False
        for name, part in members(self.path):
            if name == "images":
                found = True
                yield from (_file_name(image, number, self.path) for number, image in enumerate(part, 1))
            elif found:
                return  # the annotations are nothing to us


def _file_name(image: Any, number: int, path: Path) -> str:
    name = (image.get("file_name") or image.get("coco_url")) if isinstance(image, dict) else None
    if not isinstance(name, str) or not name.strip():
        return f"{path.name}/entry {number} without a name"
    return as_text(name)


def _is_nameless(uri: str, path: Path) -> bool:
    place = uri.removeprefix(f"{path.name}/")
    return place != uri and _NAMELESS.fullmatch(place) is not None


def _column(stream: TextIO, delimiter: str, path: Path) -> Iterator[str]:
    rows = _rows(stream, delimiter, path)
    _, titles = next(rows, (0, []))
    header = [name.strip().lower() for name in titles]
    column = next((header.index(name) for name in _COLUMNS if name in header), None)
    if column is None:
        raise AlignDetError(f"{path} has no column of images: its header must have {', '.join(_COLUMNS)}.")
    for line, row in rows:
        name = row[column] if len(row) > column else ""
        if not name.strip() and any(cell.strip() for cell in row):
            name = f"{path.name}/line {line} without a name"
        yield name


def _rows(stream: TextIO, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(its last line, cells) of every row. Quotation marks inside of a cell are as they are, but a cell of several
    lines must end in one: where nothing closes it, all lines behind it would be lost in it."""
    csv.field_size_limit(_LARGEST_CELL)
    lines: list[str] = []
    rows = csv.reader(_noted(_lines(stream, path), lines), delimiter=delimiter)
    begin = 1
    try:
        for row in rows:
            if len(lines) > 1 or any("\n" in cell for cell in row):
                deque(csv.reader(lines, delimiter=delimiter, strict=True), maxlen=0)
            yield rows.line_num, row
            begin = rows.line_num + 1
            lines.clear()
    except csv.Error as error:
        raise _no_csv(path, begin, error) from error


def _no_csv(path: Path, line: int, error: csv.Error) -> AlignDetError:
    if "field limit" in str(error):
        return AlignDetError(
            f"{path}, line {line}, has a cell of more than {_LARGEST_CELL} characters. Leave its column out, or end "
            "the cell with a quotation mark where it begins with one."
        )
    return AlignDetError(
        f"{path}, line {line}, is no CSV: {error}. Where a cell begins with a quotation mark, one must end it."
    )


def _noted(stream: Iterable[str], lines: list[str]) -> Iterator[str]:
    for line in stream:
        lines.append(line)
        yield line


def _lines(stream: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(stream):
        if number == 0 and line.startswith(_UTF16):
            raise AlignDetError(f"{path} is UTF-16, and lists are read as UTF-8. Save it so.")
        yield line


def _sized(images: ImageRoot, names: Iterable[str], origin: Path) -> Iterator[SourceEntry]:
    kept = (shortened(name) for name in names if name.strip())
    entries = (SourceEntry(name, _size(images, name)) for name in kept)
    head = list(islice(entries, _LOOKED_AT))
    if not head:
        raise AlignDetError(f"{origin} names no image.")
    named = [entry for entry in head if not _is_nameless(entry.uri, origin)]
    if (
        named
        and all(entry.size < 0 and scheme_of(entry.uri) is None for entry in named)
        and scheme_of(images.root) is None
    ):
        raise AlignDetError(
            f"none of the first {len(named)} images of {origin} is below {images.root}, the first being "
            f"{named[0].uri[:200]!r}. Say where they are: --image-root FOLDER"
        )
    yield from head
    found = bool(named)
    for entry in entries:
        found = found or not _is_nameless(entry.uri, origin)
        yield entry
    if not found:
        raise AlignDetError(f"no entry of {origin} names an image (in a COCO json: it has no file_name).")


def _size(images: ImageRoot, name: str) -> int:
    try:
        place = images.locate(name)
        return Path(as_spelled(place)).stat().st_size if scheme_of(place) is None else -1
    except (ImageRejected, OSError, ValueError):
        return -1  # reading it gives the reason


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        # What is no UTF-8 names no file that is there: that line is rejected, not the list.
        with (
            path.open("rb") as raw,
            io.TextIOWrapper(raw, "utf-8-sig", "backslashreplace", newline="") as text,
        ):
            yield text
    except OSError as error:
        raise AlignDetError(f"{path} cannot be read: {error.strerror or error}.") from error
