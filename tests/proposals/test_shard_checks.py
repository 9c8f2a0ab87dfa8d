"""What `aligndet verify` looks at in one shard, check by check: rows, their plan, and the members of the tar."""

import hashlib
import io
import json
import tarfile

import pyarrow as pa
import pytest
from PIL import ExifTags, Image

from proposals.dataset import layout
from proposals.dataset.assemble import read_plan
from proposals.dataset.checks.members import edge_faults, tar_faults
from proposals.dataset.checks.rows import plan_faults, record_faults, row_faults
from proposals.dataset.manifest import Rejection, read_manifest, read_record
from proposals.dataset.tables import read_shard

_MAX_PIXELS = 10**8


@pytest.fixture(scope="module")
def entry(mined_dataset):
    return read_manifest(mined_dataset).shards[0]


@pytest.fixture(scope="module")
def table(mined_dataset, entry):
    return read_shard(mined_dataset, entry)


@pytest.fixture
def tar(mined_dataset, entry, tmp_path):
    """A tar of the first shard, to be damaged."""
    path = tmp_path / "00000.tar"
    path.write_bytes(layout.tar_path(mined_dataset, entry.name).read_bytes())
    return path


def _changed(table, row, **values):
    for name, value in values.items():
        column = table.column(name).to_pylist()
        column[row] = value
        field = table.schema.field(name)
        place = table.schema.get_field_index(name)
        table = table.set_column(place, field, pa.array(column, field.type))
    return table.combine_chunks()


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"width": 0}, "width, height or orientation is impossible"),
        ({"height": 0}, "width, height or orientation is impossible"),
        ({"orientation": 0}, "width, height or orientation is impossible"),
        ({"orientation": 9}, "width, height or orientation is impossible"),
        ({"width": 2**16, "height": 2**16}, "width, height or orientation is impossible"),  # 0 in 32 bits
        ({"boxes": [], "rank": []}, "it has no box"),
    ],
)
def test_a_row_that_cannot_be_is_named(table, entry, values, fault):
    key = table.column("key")[1].as_py()
    assert list(row_faults(_changed(table, 1, **values), entry, _MAX_PIXELS)) == [f"row 1, {key}: {fault}"]


def test_ranks_may_be_equal_and_may_not_fall_within_a_row(table, entry):
    ranks = table.column("rank")[1].as_py()
    equal = _changed(table, 1, rank=[ranks[0]] * len(ranks))
    assert list(row_faults(equal, entry, _MAX_PIXELS)) == []
    for row in range(len(table)):
        ranks = table.column("rank")[row].as_py()
        (fault,) = row_faults(_changed(table, row, rank=[*ranks[:-1], ranks[0] - 1]), entry, _MAX_PIXELS)
        assert fault.startswith(f"row {row}, ")
        assert fault.endswith("ranks do not ascend")


def test_statuses_are_counted(table, entry):
    more = entry.model_copy(update={"statuses": {"ok": entry.images + 1}})
    (fault,) = row_faults(table, more, _MAX_PIXELS)
    assert fault.startswith("statuses are ")
    unknown = entry.model_copy(update={"statuses": {"splendid": len(table)}})
    for row in range(len(table)):
        table = _changed(table, row, status="splendid")
    (fault,) = row_faults(table, unknown, _MAX_PIXELS)
    assert fault.startswith("statuses are {'splendid'")


def test_a_record_of_another_shard_or_another_format_is_named(mined_dataset, entry):
    manifest = read_manifest(mined_dataset)
    record = read_record(layout.record_path(mined_dataset, entry.name))
    assert list(record_faults(record, entry, manifest)) == []
    (fault,) = record_faults(record, manifest.shards[1], manifest)
    assert fault.startswith("tells of shard 00000 or of other files")
    (fault,) = record_faults(record.model_copy(update={"format_version": "9.0"}), entry, manifest)
    assert fault.startswith("has format version 9.0, dataset.json ")


def test_an_image_that_is_a_row_and_rejected_too_is_there_twice(mined_dataset, table, entry):
    planned = read_plan(mined_dataset / layout.PLAN).slice(0, entry.images)
    record = read_record(layout.record_path(mined_dataset, entry.name))
    assert list(plan_faults(table, planned, record)) == []
    key, uri = table.column("key")[0].as_py(), table.column("uri")[0].as_py()
    row = Rejection(key=key, uri=uri, stage="read", reason="missing", detail="", traceback_hash="0" * 16)
    twice = record.model_copy(update={"rejected": (row,)})
    assert list(plan_faults(table, planned, twice)) == [
        f"{uri!r} is there 2 times among rows and rejected images"
    ]


def _retar(path, change):
    with tarfile.open(path) as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive]
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_tars_have_the_bytes_that_the_standard_library_writes(mined_dataset, tmp_path):
    sizes = set()
    for shard in read_manifest(mined_dataset).shards:
        whole, copy = layout.tar_path(mined_dataset, shard.name).read_bytes(), tmp_path / shard.name
        copy.write_bytes(whole)
        _retar(copy, lambda members: None)
        assert copy.read_bytes() == whole
        sizes.add(len(whole))
    assert len(sizes) > 1


def _with_exif(data, orientation):
    exif, stream = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(io.BytesIO(data)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", [4, 5])
def test_an_image_that_is_stored_on_its_side_is_measured_upright(tar, table, orientation):
    stored = []

    def turn(members):
        stored.append(_with_exif(members[2][1], orientation))
        members[2] = members[2][0], stored[0]

    _retar(tar, turn)
    width, height = Image.open(io.BytesIO(stored[0])).size
    assert width != height
    sha256, row = hashlib.sha256(stored[0]).hexdigest(), {"orientation": orientation}
    for upright in ((width, height), (height, width)):
        row |= {"width": upright[0], "height": upright[1], "sha256": sha256, "tar_size": len(stored[0])}
        found = [fault for fault in tar_faults(tar, _changed(table, 1, **row)) if "the table says" in fault]
        right = (upright == (height, width)) == (orientation == 5)
        assert any(f"the table says {upright[0]} x {upright[1]}" in fault for fault in found) is not right
        assert not any("EXIF" in fault for fault in found)


def _annotated(**values):
    def change(members):
        members[1] = members[1][0], json.dumps(json.loads(members[1][1]) | values).encode()

    return change


def _another(name):
    return lambda members: members.append((tarfile.TarInfo(name), b"x"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_annotated(uri="another.jpg"), "does not say what the table says"),
        (_annotated(width=1), "does not say what the table says"),
        (_annotated(height=1), "does not say what the table says"),
        (_annotated(ranks=[0.0]), "does not say what the table says"),
        (_annotated(boxes=[]), "does not say what the table says"),
        (_another("inner/x.jpg"), "'inner/x.jpg' is in a folder"),
        (_another("MODEL.PKL"), "'MODEL.PKL' is a pickle"),
    ],
)
def test_a_member_that_is_not_as_it_was_written_is_named(tar, table, change, fault):
    assert list(tar_faults(tar, table)) == []
    _retar(tar, change)
    found = list(tar_faults(tar, table))
    assert any(fault in each for each in found)
    assert not any("not in the order" in each for each in found)


def test_bytes_behind_a_member_and_room_behind_the_last_are_named(tar, table):
    whole = tar.read_bytes()
    end = table.column("tar_offset")[0].as_py() + table.column("tar_size")[0].as_py()
    assert end % tarfile.BLOCKSIZE
    tar.write_bytes(whole[:end] + b"\1" + whole[end + 1 :])
    (fault,) = tar_faults(tar, table)
    assert fault.startswith("holds something behind member ")
    tar.write_bytes(whole + bytes(2 * tarfile.RECORDSIZE))
    (fault,) = tar_faults(tar, table)
    assert fault.startswith("holds something after its last member")


@pytest.mark.parametrize("row", [0, -1])
def test_headers_alone_tell_a_first_or_last_image_that_is_elsewhere(tar, table, row):
    place = row % len(table)
    assert list(edge_faults(tar, table)) == []
    moved = table.column("tar_offset")[place].as_py() + tarfile.BLOCKSIZE
    found = list(edge_faults(tar, _changed(table, place, tar_offset=moved)))
    assert "holds no image of" in found[-1]
    assert len(found) == (2 if row == 0 else 1)
