"""Adding images to a finished dataset: how a source differs from the plan that was committed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.plan import Plan

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


def compare(committed: Plan, listed: Plan) -> SourceChange:
    """What happened to the source since the plan ``committed``; ``listed`` is a plan of what is there now.

    Images are told apart by the 64-bit hash that ends their key, so a plan of any length takes 16 bytes an image.
    """
    before, now = committed.hashes(), listed.hashes()
    order = np.argsort(now, kind="stable")
    places = np.minimum(np.searchsorted(now, before, sorter=order), max(len(now) - 1, 0))
    places = order[places] if len(now) else places
    there = now[places] == before if len(now) else np.zeros(len(before), dtype=np.bool_)
    added = np.ones(len(now), dtype=np.bool_)
    added[places[there]] = False
    changed = there.copy()
    changed[there] = committed.sizes()[there] != listed.sizes()[places[there]]
    return SourceChange(added, _named(committed, ~there), _named(committed, changed))


def _named(plan: Plan, flags: _Flags) -> tuple[int, tuple[str, ...]]:
    count, row = int(flags.sum()), 0
    uris: list[str] = []
    for part in plan.parts() if count else ():
        uris += part.filter(pa.array(flags[row : row + len(part)])).column("uri").to_pylist()
        row += len(part)
        if len(uris) >= min(count, _SHOWN):
            break
    return count, tuple(uris[:_SHOWN])


def _some(count: int, uris: tuple[str, ...]) -> str:
    more = f" and {count - len(uris)} more" if count > len(uris) else ""
    return ", ".join(uris) + more
