"""Adding images to a finished dataset: which are new, and the plan that puts them into shards of their own."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from proposals.dataset.assemble import PLAN_SCHEMA

_SHOWN = 5


@dataclass(frozen=True)
class SourceChange:
    """How a source differs from a plan, as uris: added, removed, changed in size."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def refusals(self) -> list[str]:
        """A line for the removed and one for the changed images; empty when images were only added."""
        kinds = (("removed", self.removed), ("changed in size", self.changed))
        return [f"{len(uris)} images {what}: {_some(uris)}" for what, uris in kinds if uris]


def compare(committed: pa.Table, listed: pa.Table) -> SourceChange:
    """What happened to the source since the plan ``committed``; ``listed`` is a plan of what is there now."""
    before, now = _sizes(committed), _sizes(listed)
    return SourceChange(
        added=tuple(uri for uri in now if uri not in before),
        removed=tuple(uri for uri in before if uri not in now),
        changed=tuple(uri for uri, size in before.items() if now.get(uri, size) != size),
    )


def extended_plan(
    committed: pa.Table, listed: pa.Table, added: tuple[str, ...], shards: int, images_per_shard: int
) -> pa.Table:
    """``committed`` and, after its ``shards`` shards, the ``added`` images of ``listed``, in its order."""
    fresh = set(added)
    chosen = listed.filter(pa.array([uri in fresh for uri in listed.column("uri").to_pylist()]))
    numbers = shards + np.arange(chosen.num_rows, dtype=np.int32) // images_per_shard
    chosen = chosen.set_column(0, "shard", pa.array(numbers, pa.int32()))
    tables = [table.select(PLAN_SCHEMA.names).cast(PLAN_SCHEMA) for table in (committed, chosen)]
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables]).combine_chunks()


def _sizes(plan: pa.Table) -> dict[str, int]:
    return dict(zip(plan.column("uri").to_pylist(), plan.column("size").to_pylist(), strict=True))


def _some(uris: tuple[str, ...]) -> str:
    more = f" and {len(uris) - _SHOWN} more" if len(uris) > _SHOWN else ""
    return ", ".join(uris[:_SHOWN]) + more
