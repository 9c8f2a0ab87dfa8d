"""Adding images to a finished dataset: how a source differs from the committed plan, and the longer plan beside it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.claim import Say, taken_over
from pipeline.plan import ListedPlan, Plan, PlanFile, key_hashes
from pipeline.proofs import committed_records
from proposals.dataset import layout
from proposals.dataset.assemble import rejected_bytes, write_plan
from proposals.dataset.files import file_sha256, publish, remove_leftovers, temporary_beside
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import FileEntry, Manifest, read_manifest, require_listable
from proposals.errors import AlignDetError
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
        told = f"{count} rejected images have another size than when they were listed: {_some(count, uris)}. "
        return f"{told}--retry-rejected tries them again" if count else None


def compare(committed: Plan, listed: ListedPlan, rejected: Collection[str]) -> SourceChange:
    """What happened to the source since the plan ``committed``; ``listed`` is a plan of what is there now.

    rejected: keys of images without boxes, which may change in size: no box is wrong then. Images are told apart by
    the 64-bit hash that ends their key, so a list of any length takes 25 bytes an image.
    """
    find, added = listed.finder(), np.ones(listed.images, dtype=np.bool_)
    removed, changed, retriable = _Tally(), _Tally(), _Tally()
    without_boxes = pa.array(sorted(rejected), pa.string())
    unsized = not bool((listed.sizes >= 0).any())
    for part in committed.parts():
        uris = part.column("uri")
        places, there = find(key_hashes(part))
        added[places[there]] = False
        removed.add(uris, ~there)
        before, now = part.column("size").to_numpy()[there], listed.sizes[places[there]]
        boxless = pc.is_in(part.column("key"), without_boxes).to_numpy()
        differs, unknown = before != now, now < 0
        # What had a size and has none is gone, but for a source that tells none at all.
        fault, chance = np.zeros_like(there), np.zeros_like(there)
        fault[there] = differs & (before >= 0) & ~(unknown & unsized)
        chance[there] = differs & ~unknown
        changed.add(uris, fault & ~boxless)
        retriable.add(uris, chance & boxless)
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


def take_back_append(out: Path, manifest: Manifest, say: Say) -> None:
    """Remove what is there of adding images that are gone again: their shards, and what was written to commit them.

    Raises AlignDetError, with nothing removed, when the committed files cannot be written again.
    """
    if not is_there(out / layout.APPEND):
        return
    _require_unchanged(out, manifest)
    plan = PlanFile(out / layout.PLAN, len(manifest.shards))
    identity = JobIdentity.of(manifest)
    _restore(out, manifest.plan, lambda file: write_plan(file, plan.parts(), identity))
    _restore(out, manifest.rejected, lambda file: file.write_bytes(_rejected_bytes(out, manifest)))
    removed = _remove_shards_behind(out, manifest)
    (out / layout.APPEND).unlink()
    say(f"the images that were being added are gone: {removed} files of their shards are removed")


def _restore(out: Path, entry: FileEntry, write: Callable[[Path], object]) -> None:
    path = out / entry.path
    if file_sha256(path) == entry.sha256:
        return
    with temporary_beside(path) as (temporary,):
        write(temporary)
        if file_sha256(temporary) != entry.sha256:
            raise AlignDetError(
                f"{path} is of images that are gone, and cannot be written again as it was committed, perhaps for "
                "another version of pyarrow. Bring the images back and run the same command"
            )
        publish(temporary, path)


def _rejected_bytes(out: Path, manifest: Manifest) -> bytes:
    return rejected_bytes(list(committed_records(out, manifest).values()))


def _remove_shards_behind(out: Path, manifest: Manifest) -> int:
    """Remove those of an append of other images, never committed; returns how many files that were."""
    _require_unchanged(out, manifest)
    stale = [
        path
        for path in (out / layout.SHARDS).glob("*.*")
        if path.stem.isdigit() and int(path.stem) >= len(manifest.shards)
    ]
    for path in stale:
        path.unlink()
    return len(stale)


def _require_unchanged(out: Path, manifest: Manifest) -> None:
    if read_manifest(out) != manifest:
        raise taken_over(out)


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
