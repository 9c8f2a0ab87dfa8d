"""Whether proposals.zarr holds what the Parquet tables hold."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from proposals.dataset.manifest import Manifest
from proposals.dataset.proposals_reader import ProposalReader
from proposals.dataset.tables import box_offsets, flat_boxes, flat_ranks, read_shard
from proposals.errors import AlignDetError, UnansweredError


def array_faults(root: Path, manifest: Manifest) -> Iterator[str]:
    """Shards whose keys, boxes or ranks differ between a committed proposals.zarr and their tables."""
    try:
        reader, first = ProposalReader(root, "zarr"), 0
        for entry in manifest.shards:
            if entry.images:
                table, batch = read_shard(root, entry), reader[first : first + entry.images]
                keys = np.array(table.column("key").to_pylist(), dtype=reader.keys.dtype)
                pairs = (
                    (keys, reader.keys[first : first + entry.images]),
                    (box_offsets(table), batch.offsets),
                    (flat_boxes(table), batch.boxes),
                    (flat_ranks(table), batch.rank),
                )
                if not all(np.array_equal(one, two) for one, two in pairs):
                    yield f"does not hold what the table of shard {entry.name} holds"
            first += entry.images
    except UnansweredError:
        raise
    except (AlignDetError, OSError, ValueError, KeyError, RuntimeError) as error:
        yield f"cannot be compared with the tables: {error}"
