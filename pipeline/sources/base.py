"""What every source is: a fixed list of names, and bytes by name."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from proposals.dataset.manifest import SourceInfo
from proposals.image_roots import ImageRoot, Kind


@dataclass(frozen=True)
class SourceEntry:
    """One image: its uri, unique in the source, and its size in bytes, -1 when it is no file or not known."""

    uri: str
    size: int


def as_text(name: str) -> str:
    """``name`` as UTF-8 can hold it: bytes that were none, and halves of characters, as ``\\xNN``."""
    if name.isascii():
        return name
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # JSON can name half a character
        data = name.encode("utf-8", "surrogatepass")
    return data.decode("utf-8", "backslashreplace")


class Source(ABC):
    """Images of one place. Small and picklable: it travels to every worker, which opens what it needs by itself."""

    kind: ClassVar[Kind]
    left_out: tuple[str, ...] = ()  # datasets below it, whose tars and tables are no part of it

    @abstractmethod
    def entries(self) -> Iterator[SourceEntry]:
        """Every image, in an order that depends on names alone; streams, so that a list of any length fits.

        Each comes once, but for what a list names again. Raises AlignDetError when the source is missing, cannot be
        listed, or holds no image. What cannot be read inside of it, a cut tar for one, is listed too, and refused by
        `read`.
        """

    @property
    @abstractmethod
    def images(self) -> ImageRoot:
        """Where the images are: what reads one by its uri, here and wherever the dataset is used."""

    def read(self, uri: str) -> bytes:
        """The bytes of one image.

        Raises ImageRejected(stage "read") for what is wrong with this one image, and SourceUnavailableError, an
        OSError, for what may be gone when it is tried again.
        """
        return self.images.read(uri)


def describe(kind: str, entries: Iterable[SourceEntry]) -> SourceInfo:
    """What a dataset remembers of its source: the same names and sizes give the same fingerprint."""
    return SourceInfo.of(kind, ((entry.uri, entry.size) for entry in entries))
