"""regions.zarr: features of every box, one array per shard, so that each has one writer and counts when it is there.

``regions.zarr/NNNNN`` is [boxes of shard NNNNN, C] float16, in the order of its boxes. The group's attributes say
what made the features; an array's say which Parquet table they belong to, and the sha256 of its values.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proposals.dataset import layout
from proposals.dataset.bounds import MAX_RECORD_BYTES, read_bounded
from proposals.dataset.files import fsync, paths_in, remove_leftovers, temporary_name, write_atomically
from proposals.dataset.manifest import Manifest, ShardEntry
from proposals.dataset.zarr_reading import open_arrays, values
from proposals.errors import AlignDetError, UnansweredError
from proposals.paths import is_there

Features = npt.NDArray[np.float16]
_CHUNK = 4096


class RegionStore:
    """The features of a dataset's boxes, in the dataset folder ``root``. Opening neither writes nor needs a store."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / layout.REGIONS

    def identity(self) -> dict[str, Any] | None:
        """What made the features; None when there are none. Raises AlignDetError when that cannot be read."""
        path = self.path / "zarr.json"
        if not is_there(path):
            return None
        try:
            return dict(json.loads(read_bounded(path, MAX_RECORD_BYTES))["attributes"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AlignDetError(
                f"{path} is damaged. Remove {self.path}, then run `aligndet regions` again."
            ) from error

    def begin(self, identity: dict[str, Any]) -> None:
        """Make the group for features of ``identity``, or resume it. Raises AlignDetError when it holds others."""
        known = json.loads(json.dumps(identity))
        there = self.identity()
        if there is None:
            self.path.mkdir(exist_ok=True)
            group = {"zarr_format": 3, "node_type": "group", "attributes": known}
            write_atomically(self.path / "zarr.json", json.dumps(group, indent=1).encode())
        elif there != known:
            changed = [name for name in sorted(there | known) if there.get(name) != known.get(name)]
            raise AlignDetError(
                f"{self.path} holds features of another backbone or size ({', '.join(changed)} differ). Use the same "
                "options, or remove it."
            )
        remove_leftovers(self.path)

    def has(self, shard: ShardEntry) -> bool:
        """Whether the features of this very table are complete."""
        attributes = self._attributes(shard.name)
        return shard.parquet is not None and attributes.get("parquet") == shard.parquet.sha256

    def missing(self, manifest: Manifest) -> list[ShardEntry]:
        """Shards with images that have no features yet."""
        return [shard for shard in manifest.shards if shard.images and not self.has(shard)]

    def write(self, shard: ShardEntry, features: Features) -> None:
        """Store [boxes, C] float16 of ``shard``, whole or not at all."""
        import zarr
        from zarr.codecs import BloscCodec

        assert shard.parquet is not None
        final = self.path / shard.name
        temporary = temporary_name(final)
        array = zarr.create_array(
            temporary,
            shape=features.shape,
            dtype=features.dtype,
            chunks=(min(_CHUNK, len(features)), features.shape[1]),
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")],
            fill_value=0,
            attributes={"parquet": shard.parquet.sha256, "sha256": _sha256(features)},
        )
        array[:] = features
        for path in [*temporary.rglob("*"), temporary]:
            fsync(path)
        if final.exists():
            shutil.rmtree(final)  # of a table that is no more
        temporary.replace(final)
        fsync(self.path)

    def read(self, shard: ShardEntry) -> Features:
        """[boxes, C] float16 of ``shard``. Raises AlignDetError when they are missing or not what was written."""
        fault = self.fault(shard)
        if fault is not None:
            raise AlignDetError(
                f"{self.path / shard.name} {fault}. Remove it, then run: aligndet regions {self.root} ..."
            )
        return self._values(shard)

    def fault(self, shard: ShardEntry) -> str | None:
        """What is wrong with the features of ``shard``, None when nothing is."""
        if not self.has(shard):
            return "is missing or of other boxes"
        try:
            found = self._values(shard)
        except UnansweredError:
            raise
        except AlignDetError as error:
            return f"cannot be read: {error}"
        if _sha256(found) != self._attributes(shard.name).get("sha256"):
            return "does not hold what was written"
        return None

    def strangers(self, manifest: Manifest) -> list[str]:
        """Paths below the dataset of what lies in the group and belongs to no features of its shards, in order."""
        group = layout.REGIONS
        known = {f"{group}/zarr.json"}
        for shard in manifest.shards:
            known |= {f"{group}/{shard.name}/zarr.json"}
            known |= {f"{group}/{shard.name}/c/{row}/0" for row in range(-(-shard.proposals // _CHUNK))}
        found = paths_in(self.root, group)
        return [path for path in found if path not in known and layout.TEMPORARY_MARK not in path]

    def batches(self, manifest: Manifest, rows: int) -> Iterator[Features]:
        """All features in dataset order, at least ``rows`` at a time, but for a dataset that has fewer."""
        held: list[Features] = []
        left = sum(shard.proposals for shard in manifest.shards)
        for shard in manifest.shards:
            if shard.images:
                held.append(self.read(shard))
                left -= shard.proposals
                if sum(map(len, held)) >= rows and (left >= rows or not left):
                    yield np.concatenate(held)
                    held = []
        if held:
            yield np.concatenate(held)

    def _values(self, shard: ShardEntry) -> Features:
        opened = open_arrays(self.path / shard.name, {"": ((shard.proposals, None), "float16")})
        return np.asarray(values(opened[""]))

    def _attributes(self, name: str) -> dict[str, Any]:
        try:
            content = read_bounded(self.path / name / "zarr.json", MAX_RECORD_BYTES)
            return dict(json.loads(content)["attributes"])
        except UnansweredError:
            raise
        except (AlignDetError, ValueError, KeyError, TypeError, RecursionError):
            return {}


def _sha256(features: Features) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()
