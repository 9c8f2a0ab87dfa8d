"""Adding images to a finished dataset: how a source differs from the committed plan, and the longer plan beside it."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.claim import taken_over
from pipeline.plan import ListedPlan, Plan, PlanFile, key_hashes
from proposals.dataset import layout
from proposals.dataset.assemble import write_plan
from proposals.dataset.files import file_sha256, publish, remove_leftovers, temporary_beside
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import Manifest, read_manifest, require_listable
from proposals.paths import is_there

_SHOWN = 5
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SourceChange:
    """How a source differs from a plan.

    added: [images listed now] bool. removed, changed in size, and changed since they were rejected: how many of each,
    and the first.
    """

    added: _Flags
    removed: tuple[int, tuple[str, ...]]
    changed: tuple[int, tuple[str, ...]]
    rejected: tuple[int, tuple[str, ...]]

    def refusals(self) -> list[str]:
        """A line for the removed and one for the changed images; empty when images were only added."""
        kinds = (("removed", self.removed), ("changed in size", self.changed))
        return [f"{count} images {what}: {_some(count, uris)}" for what, (count, uris) in kinds if count]

    def advice(self) -> str | None:
        """What to do about images that may pass now."""
        count, uris = self.rejected
        told = f"{count} images have changed since they were rejected: {_some(count, uris)}. "
        return f"{told}--retry-rejected tries them again" if count else None


def compare(committed: Plan, listed: ListedPlan, rejected: Collection[str]) -> SourceChange:
    """What happened to the source since the plan ``committed``; ``listed`` is a plan of what is there now.

    rejected: keys of images without boxes, which may change in size: no box is wrong then. Images are told apart by
    the 64-bit hash that ends their key, so a list of any length takes 25 bytes an image.
    """
    find, added = listed.finder(), np.ones(listed.images, dtype=np.bool_)
    removed, changed, retriable = _Tally(), _Tally(), _Tally()
    without_boxes = pa.array(sorted(rejected), pa.string())
    for part in committed.parts():
        uris = part.column("uri")
        places, there = find(key_hashes(part))
        added[places[there]] = False
        removed.add(uris, ~there)
        there[there] = part.column("size").to_numpy()[there] != listed.sizes[places[there]]
        boxless = pc.is_in(part.column("key"), without_boxes).to_numpy()
        changed.add(uris, there & ~boxless)
        retriable.add(uris, there & boxless)
    return SourceChange(added, removed.found(), changed.found(), retriable.found())


def start_append(out: Path, extended: Plan, identity: JobIdentity, manifest: Manifest) -> None:
    """Write ``extended`` beside the plan of the dataset in ``out``, unless it is there, and drop what another left.

    Raises AlignDetError when ``manifest`` is no longer that of the dataset, or could not list so many shards.
    """
    require_listable(extended.shards, extended.images, identity.images_per_shard)
    path = out / layout.APPEND
    remove_leftovers(out / layout.SHARDS)
    with temporary_beside(path) as (temporary,):
        write_plan(temporary, extended.parts(), identity)
        if is_there(path) and file_sha256(path) == file_sha256(temporary):
            return
        _remove_shards_behind(out, manifest)
        publish(temporary, path)


def take_back_append(out: Path, manifest: Manifest) -> None:
    """Remove what is there of adding images that are gone again: their shards, and the longer plan that named them."""
    if not is_there(out / layout.APPEND):
        return
    _remove_shards_behind(out, manifest)
    path = out / layout.PLAN
    if file_sha256(path) != manifest.plan.sha256:
        with temporary_beside(path) as (temporary,):
            write_plan(temporary, PlanFile(path, len(manifest.shards)).parts(), JobIdentity.of(manifest))
            publish(temporary, path)
    (out / layout.APPEND).unlink()


def _remove_shards_behind(out: Path, manifest: Manifest) -> None:
    if read_manifest(out) != manifest:
        raise taken_over(out)
    for stale in (out / layout.SHARDS).glob("*.*"):
        if stale.stem.isdigit() and int(stale.stem) >= len(manifest.shards):
            stale.unlink()  # of an append of other images, never committed


class _Tally:
    """How many images, and the first of them."""

    def __init__(self) -> None:
        self._count, self._uris = 0, list[str]()

    def add(self, uris: pa.ChunkedArray, flags: _Flags) -> None:
        self._count += int(flags.sum())
        room = _SHOWN - len(self._uris)
        if room and flags.any():
            self._uris += uris.filter(pa.array(flags)).slice(0, room).to_pylist()

    def found(self) -> tuple[int, tuple[str, ...]]:
        return self._count, tuple(self._uris)


def _some(count: int, uris: tuple[str, ...]) -> str:
    more = f" and {count - len(uris)} more" if count > len(uris) else ""
    return ", ".join(uris) + more
