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
    earlier, count, example = np.empty(0, dtype="S32"), 0, ("", "")
    for number, (root, manifest) in enumerate(parts if len(parts) > 1 else ()):
        here = _digests(root, manifest)
        again = np.flatnonzero(np.isin(here, earlier))
        if len(again) and not count:
            first = int(np.flatnonzero(earlier == here[again[0]])[0])
            example = _uri(parts[:number], first), _uri(parts[number : number + 1], int(again[0]))
        count += len(again)
        earlier = np.concatenate([earlier, here])
    return Doubles(count, example) if count else None


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
