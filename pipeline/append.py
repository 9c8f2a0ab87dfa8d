"""Adding images to a finished dataset: how a source differs from the plan that was committed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.plan import ListedPlan, Plan, key_hashes

_SHOWN = 5
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SourceChange:
    """How a source differs from a plan. added: [images listed now] bool. removed, changed: how many, and the first."""

    added: _Flags
    removed: tuple[int, tuple[str, ...]]
    changed: tuple[int, tuple[str, ...]]

    def refusals(self) -> list[str]:
        """A line for the removed and one for the changed images; empty when images were only added."""
        kinds = (("removed", self.removed), ("changed in size", self.changed))
        return [f"{count} images {what}: {_some(count, uris)}" for what, (count, uris) in kinds if count]


def compare(committed: Plan, listed: ListedPlan) -> SourceChange:
    """What happened to the source since the plan ``committed``; ``listed`` is a plan of what is there now.

    Images are told apart by the 64-bit hash that ends their key, so a list of any length takes 25 bytes an image.
    """
    find, added = listed.finder(), np.ones(listed.images, dtype=np.bool_)
    removed, changed = _Tally(), _Tally()
    for part in committed.parts():
        uris = part.column("uri")
        places, there = find(key_hashes(part))
        added[places[there]] = False
        removed.add(uris, ~there)
        there[there] = part.column("size").to_numpy()[there] != listed.sizes[places[there]]
        changed.add(uris, there)
    return SourceChange(added, removed.found(), changed.found())


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
