"""How a source differs from the plan that a job or a dataset has."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.claim import Say
from pipeline.plan import ListedPlan, Plan, key_hashes

# All that may differ between a job or dataset and a run that adds images to it.
GROWS = ("source.images:", "source.fingerprint:")

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


def tell_of_waiting(change: SourceChange, say: Say) -> None:
    if count := int(change.added.sum()):
        say(
            f"{count} images came since this job began: those it began with are finished now, and the same command "
            "adds the others then"
        )


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
