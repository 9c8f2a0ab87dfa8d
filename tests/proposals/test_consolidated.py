"""proposals.zarr: the same boxes as the Parquet tables, from any number of writers, or not there at all."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proposals.dataset import ProposalReader, layout, open_dataset
from proposals.dataset.assemble import assemble
from proposals.dataset.consolidated import consolidate
from proposals.dataset.files import alone_with, file_sha256
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import FileEntry, read_manifest, read_record, write_model
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from tests.damage import flip_a_bit

_SHARD = 512


@pytest.fixture(scope="module")
def small(photos, mine_folder, tmp_path_factory):
    """Every box kept, so that the boxes fill more than one Zarr shard of the smallest size."""
    from proposals.recipe import Recipe

    return mine_folder(photos, tmp_path_factory.mktemp("zarr") / "small", Recipe(filter="none"))


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    copy = shutil.copytree(small, tmp_path_factory.mktemp("zarr") / "whole")
    assert consolidate(copy, 1, zarr_shard=_SHARD)
    return copy


@pytest.fixture
def copy(small, tmp_path):
    return shutil.copytree(small, tmp_path / "copy")


def _hashes(root):
    files = [path for path in (root / layout.CONSOLIDATED).rglob("*") if path.is_file()]
    return {path.relative_to(root): file_sha256(path) for path in files}


def test_of_two_at_once_one_writes_and_both_succeed(copy, whole):
    call = "import sys; from pathlib import Path; from proposals.dataset.consolidated import consolidate; "
    call += f"print(consolidate(Path(sys.argv[1]), 1, zarr_shard={_SHARD}))"
    processes = [
        subprocess.Popen([sys.executable, "-c", call, str(copy)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    assert said == ["False", "False", "True"]
    assert _hashes(copy) == _hashes(whole)
    assert verify_dataset(copy, deep=True).problems == ()


def test_it_is_a_plain_sharded_zarr_v3_group(whole):
    group = zarr.open_group(whole / "proposals.zarr", mode="r", zarr_format=3)
    dataset = open_dataset(whole)
    assert group["boxes"].shards == (_SHARD, 4)
    assert (
        len(list((whole / "proposals.zarr" / "boxes" / "c").iterdir()))
        == -(-group["rank"].size // _SHARD)
        > 1
    )
    offsets = group["offsets"][:]
    for i, record in enumerate(dataset):
        first, last = offsets[i : i + 2]
        assert np.array_equal(group["boxes"][first:last], record.boxes)
        assert np.array_equal(group["rank"][first:last], record.rank)
        assert bytes(group["keys"][i]).rstrip(b"\0").decode() == record.key


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(-10, 10), stop=st.integers(-10, 10))
def test_both_storages_give_the_same(whole, start, stop):
    from_zarr, from_parquet = ProposalReader(whole, "zarr"), ProposalReader(whole, "parquet")
    one, two = from_zarr[start:stop], from_parquet[start:stop]
    assert one.start == two.start
    for name in ("offsets", "boxes", "rank"):
        first, second = getattr(one, name), getattr(two, name)
        assert np.array_equal(first, second)
        assert first.dtype == second.dtype


@pytest.mark.parametrize("storage", ["zarr", "parquet"])
def test_one_interface(whole, storage):
    reader, dataset = ProposalReader(whole, storage), open_dataset(whole)
    assert reader.storage == storage
    assert len(reader) == len(dataset) == 8
    for i, record in enumerate(dataset):
        for where in (i, i - 8, record.key):
            boxes, rank = reader[where]
            assert np.array_equal(boxes, record.boxes)
            assert np.array_equal(rank, record.rank)
        assert reader.index(record.key) == i
    batches = list(reader.batches(3))
    assert [(batch.start, len(batch)) for batch in batches] == [(0, 3), (3, 3), (6, 2)]
    assert np.array_equal(batches[1][2][0], dataset[5].boxes)
    assert len(reader[5:5]) == 0
    for outside in (8, -9):
        with pytest.raises(IndexError):
            reader[outside]
    with pytest.raises(IndexError):
        batches[0][3]
    for unknown in ("", "zebra", dataset[0].key[:-1], dataset[0].key + "0" * 60):
        with pytest.raises(KeyError):
            reader[unknown]


def test_any_number_of_writers_gives_the_same_bytes(copy, whole):
    assert consolidate(copy, 2, zarr_shard=_SHARD)
    assert _hashes(copy) == _hashes(whole)
    assert read_manifest(copy) == read_manifest(whole)
    before = {path: path.stat().st_mtime_ns for path in [copy, *copy.rglob("*")]}
    assert not consolidate(copy, 1)
    assert {path: path.stat().st_mtime_ns for path in [copy, *copy.rglob("*")]} == before
    assert verify_dataset(copy, deep=True).problems == ()


class _Consolidating:
    """`aligndet consolidate` in a process group of its own, caught while its writers run."""

    def __init__(self, root):
        program = "from proposals.cli import main; main()"
        command = [sys.executable, "-c", program, "consolidate", str(root), "--workers", "2"]
        self.process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (list(root.glob("proposals.zarr.tmp-*/rank/zarr.json")) and self._children()):
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def _children(self):
        me = self.process.pid
        children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
        return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]

    def kill_all(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def kill_writers(self):
        for pid in self._children():
            os.kill(pid, signal.SIGKILL)
        return self.process.communicate()[1]


def test_a_killed_writer_leaves_nothing_that_is_read(copy):
    manifest = (copy / layout.MANIFEST).read_bytes()
    _Consolidating(copy).kill_all()
    assert (copy / layout.MANIFEST).read_bytes() == manifest
    stopped = list(copy.glob("proposals.zarr.tmp-*"))
    assert stopped
    with pytest.raises(AlignDetError, match=r"not committed in dataset\.json"):
        ProposalReader(copy, "zarr")
    assert ProposalReader(copy).storage == "parquet"
    report = verify_dataset(copy, deep=True)
    assert (report.problems, bool(report.unfinished)) == ((), True)
    stopped[0].rename(copy / layout.CONSOLIDATED)  # killed one step later: named, but not committed
    with pytest.raises(AlignDetError, match=r"not committed in dataset\.json"):
        ProposalReader(copy, "zarr")
    assert verify_dataset(copy, deep=True).problems == ()
    assert consolidate(copy)
    assert ProposalReader(copy).storage == "zarr"
    assert verify_dataset(copy, deep=True).unfinished == ()


def test_a_writer_that_dies_is_one_sentence(copy):
    error = _Consolidating(copy).kill_writers()
    assert "died" in error
    assert "Traceback" not in error
    assert not list(copy.glob("proposals.zarr*"))


def test_damage_is_refused_and_a_rerun_repairs_it(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "damaged")
    for file in ("proposals.zarr/rank/zarr.json", "proposals.zarr/boxes/c/0/0"):
        path = copy / file
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        with pytest.raises(AlignDetError, match="Run: aligndet consolidate"):
            ProposalReader(copy)
        path.write_bytes(data)
    path.unlink()
    assert consolidate(copy, zarr_shard=_SHARD)
    assert _hashes(copy) == _hashes(whole)


def test_a_damaged_table_is_refused_and_no_boxes_of_it_are_kept(copy):
    flip_a_bit(copy / "shards" / "00001.parquet")
    with pytest.raises(
        AlignDetError, match=r"00001\.parquet .* Repair it first: aligndet verify .* --repair"
    ):
        consolidate(copy)
    assert not list(copy.glob("proposals.zarr*"))


def test_a_link_in_its_place_is_refused_and_stays(copy, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    place = copy / "proposals.zarr"
    for target in ("elsewhere", "nowhere"):
        place.symlink_to(tmp_path / target)
        with pytest.raises(AlignDetError, match="is a link"):
            consolidate(copy)
        assert place.readlink() == tmp_path / target
        place.unlink()


def test_images_added_since_make_it_stale(photos, mine_folder, tmp_path):
    from proposals.recipe import Recipe

    images = tmp_path / "in"
    images.mkdir()
    shutil.copy(photos / "cat.jpg", images)
    out = mine_folder(images, tmp_path / "out", Recipe(max_side=64))
    consolidate(out)
    shutil.copy(photos / "china.jpg", images)
    mine_folder(images, out, Recipe(max_side=64))
    assert not (out / layout.CONSOLIDATED).exists()
    assert len(ProposalReader(out)) == 2
    with pytest.raises(AlignDetError, match="older than images added since"):
        ProposalReader(out, "zarr")
    assert verify_dataset(out, deep=True).problems == ()


def test_images_added_meanwhile_are_not_lost_again(photos, mine_folder, tmp_path, monkeypatch):
    from proposals.recipe import Recipe

    images, recipe = tmp_path / "in", Recipe(max_side=64)
    images.mkdir()
    shutil.copy(photos / "cat.jpg", images)
    out = mine_folder(images, tmp_path / "out", recipe)
    shutil.copy(photos / "china.jpg", images)
    create = zarr.create_group

    def mine_and_create(*args, **options):
        mine_folder(images, out, recipe)
        return create(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(zarr, "create_group", mine_and_create)
        with pytest.raises(AlignDetError, match="was changed while it was consolidated"):
            consolidate(out)
    assert len(open_dataset(out)) == 2
    assert not list(out.glob("proposals.zarr*"))
    assert verify_dataset(out, deep=True).problems == ()
    assert consolidate(out)


def test_images_added_while_an_old_group_is_removed_are_not_lost(photos, mine_folder, tmp_path, monkeypatch):
    from proposals.recipe import Recipe

    images, recipe = tmp_path / "in", Recipe(max_side=64)
    images.mkdir()
    shutil.copy(photos / "cat.jpg", images)
    out = mine_folder(images, tmp_path / "out", recipe)
    consolidate(out)
    write_model(out / layout.MANIFEST, read_manifest(out).model_copy(update={"consolidated": ()}))
    shutil.copy(photos / "china.jpg", images)
    remove, removed = shutil.rmtree, []

    def mine_and_remove(path, *args, **options):
        if not removed and Path(path).is_dir():
            removed.append(path)
            mine_folder(images, out, recipe)
        return remove(path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", mine_and_remove)
        consolidate(out)
    assert removed
    assert len(open_dataset(out)) == 2
    assert not list(out.glob("proposals.zarr*"))
    assert verify_dataset(out, deep=True).problems == ()


def test_a_dataset_is_not_committed_while_another_one_compares_and_writes(copy):
    manifest = read_manifest(copy)
    records = [read_record(layout.record_path(copy, shard.name)) for shard in manifest.shards]
    (copy / layout.MANIFEST).unlink()
    thread = threading.Thread(target=assemble, args=(copy, JobIdentity.of(manifest), records))
    with alone_with(copy):
        thread.start()
        thread.join(0.5)
        assert not (copy / layout.MANIFEST).exists()
    thread.join(60)
    assert read_manifest(copy) == manifest


def test_other_boxes_than_the_tables_are_named(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "hostile")
    group = zarr.open_group(copy / "proposals.zarr", mode="r+")
    group["boxes"][-1] = [0, 0, 1, 1]
    _recommit(copy)
    assert verify_dataset(copy).problems == ()
    (problem,) = verify_dataset(copy, deep=True).problems
    assert problem.what == "does not hold what the table of shard 00002 holds"


def _recommit(root):
    manifest = read_manifest(root)
    entries = tuple(FileEntry.of(root, root / entry.path) for entry in manifest.consolidated)
    write_model(root / layout.MANIFEST, manifest.model_copy(update={"consolidated": entries}))


def test_a_group_of_other_shapes_is_refused_before_it_is_read(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "hostile")
    path = copy / "proposals.zarr" / "offsets" / "zarr.json"
    path.write_text(path.read_text().replace('"shape": [\n    9\n  ]', '"shape": [\n    99999999999\n  ]'))
    _recommit(copy)
    with pytest.raises(AlignDetError, match="it must be"):
        ProposalReader(copy)
