"""Images with equal content in several datasets: keys, which are made from names, do not tell them apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from proposals.dataset.manifest import Manifest, ShardEntry
from proposals.dataset.tables import read_columns
from proposals.errors import AlignDetError

Parts = Sequence[tuple[Path, Manifest]]
_Digests = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Doubles:
    """count: images whose content an earlier dataset has, too. example: the uris of one of them, the earlier first."""

    count: int
    example: tuple[str, str]


def equal_images(parts: Parts) -> Doubles | None:
    """The images of later datasets, by their sha256, that are in earlier ones; None when there is none.

    parts: folders and their manifests. Takes at most 200 bytes an image. Raises AlignDetError when a table is damaged.
    """
    if len(parts) < 2:
        return None
    found = [_digests(root, manifest) for root, manifest in parts]
    dataset = np.repeat(np.arange(len(found)), [len(digests) for digests in found])
    digests = np.concatenate(found)
    order = np.argsort(digests, kind="stable")  # so equal ones stay in the order of the datasets
    begins = np.concatenate([[True], digests[order][1:] != digests[order][:-1]])
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    again = np.flatnonzero(dataset[order] > dataset[first])
    if not len(again):
        return None
    one = again[np.argmin(order[again])]
    return Doubles(len(again), (_uri(parts, int(first[one])), _uri(parts, int(order[one]))))


def _digests(root: Path, manifest: Manifest) -> _Digests:
    """[N] S32: the sha256 of every image, in dataset order."""
    texts = (
        text
        for shard in manifest.shards
        if shard.images
        for text in read_columns(root, shard, ["sha256"]).column("sha256").to_pylist()
    )
    try:
        return np.fromiter(map(bytes.fromhex, texts), dtype="S32", count=manifest.totals.images)
    except (ValueError, TypeError) as error:
        raise AlignDetError(
            f"a table of {root} has a sha256 that is none. See: aligndet verify {root}"
        ) from error


def _uri(parts: Parts, place: int) -> str:
    for root, shard in _shards(parts):
        if place < shard.images:
            return str(read_columns(root, shard, ["uri"]).column("uri")[place])
        place -= shard.images
    raise IndexError(place)


def _shards(parts: Parts) -> Iterator[tuple[Path, ShardEntry]]:
    for root, manifest in parts:
        yield from ((root, shard) for shard in manifest.shards)
