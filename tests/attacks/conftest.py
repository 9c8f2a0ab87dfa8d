"""A dataset to damage, and a place where damage can do none."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proposals.dataset import layout
from proposals.dataset.consolidated import consolidate
from proposals.dataset.files import file_sha256
from tests.attacks.confined import Confined
from tests.damage import write_sealed


@pytest.fixture(scope="session")
def confined() -> Iterator[Confined]:
    """Reads files with little memory, see `Confined.read`."""
    process = Confined()
    yield process
    process.close()


@pytest.fixture
def consolidated(copy: Path) -> Path:
    """The same with its proposals.zarr."""
    consolidate(copy)
    return copy


@pytest.fixture(scope="session")
def reseal() -> Callable[[Path], None]:
    """``reseal(root)``: make every sha256 and seal fit again, as somebody would who wants to be believed."""

    def entry_again(root: Path, entry: dict) -> None:
        path = root / entry["path"]
        if path.is_file():
            entry.update(bytes=path.stat().st_size, sha256=file_sha256(path))

    def again(root: Path, change: Callable[[dict], None] = lambda content: None) -> None:
        manifest = json.loads((root / layout.MANIFEST).read_text())
        for shard in manifest["shards"]:
            for entry in filter(None, (shard["tar"], shard["parquet"])):
                entry_again(root, entry)
            path = layout.record_path(root, shard["name"])
            write_sealed(path, {**json.loads(path.read_text()), "shard": shard})
        for entry in (manifest["plan"], manifest["rejected"], *manifest["consolidated"]):
            entry_again(root, entry)
        change(manifest)
        write_sealed(root / layout.MANIFEST, manifest)

    return again
