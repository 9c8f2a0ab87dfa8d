"""What every source is: a fixed list of names, and bytes by name."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from proposals.dataset.manifest import SourceInfo


@dataclass(frozen=True)
class SourceEntry:
    """One image: its uri, unique in the source, and its size in bytes, -1 when it is no file or not known."""

    uri: str
    size: int


class SourceUnavailableError(OSError):
    """Throttled, cut off, timed out: the image may be there, so trying again later can help."""


class Source(ABC):
    """Images of one place. Small and picklable: it travels to every worker, which opens what it needs by itself."""

    kind: ClassVar[str]

    @abstractmethod
    def entries(self) -> Iterator[SourceEntry]:
        """Every image once, in an order that depends on names alone; streams, so that a list of any length fits.

        Raises AlignDetError when the source is missing, cannot be listed, or holds no image.
        """

    @abstractmethod
    def read(self, uri: str) -> bytes:
        """The bytes of one image.

        Raises ImageRejected(stage "read") for what is wrong with this one image, and SourceUnavailableError, an
        OSError, for what may be gone when it is tried again.
        """


def describe(kind: str, entries: Iterable[SourceEntry]) -> SourceInfo:
    """What a dataset remembers of its source: the same names and sizes give the same fingerprint."""
    digest, images = hashlib.sha256(), 0
    for entry in entries:
        digest.update(f"{entry.uri}\0{entry.size}\n".encode())
        images += 1
    return SourceInfo(kind=kind, images=images, fingerprint=digest.hexdigest())
