"""`aligndet verify` on damaged and on hostile datasets: each fault is named, with its shard."""

import cProfile
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from proposals.cli import build_app
from proposals.dataset import ProposalReader, layout
from proposals.dataset.consolidated import consolidate
from proposals.dataset.files import file_sha256
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from tests.damage import write_sealed

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bit_flips.py"


def _verify(root, *options):
    result = CliRunner().invoke(build_app(), ["verify", str(root), *options])
    return result.exit_code, result.output


def _named(root, file, *, deep=True):
    """What is said of ``file``, joined; nothing else but dataset.json's sums may be blamed on another shard."""
    report = verify_dataset(root, deep=deep)
    return "; ".join(problem.what for problem in report.problems if problem.file == file)


def _reseal(root):
    """Make every hash and seal fit again, as somebody would who wants to be believed."""
    manifest = json.loads((root / layout.MANIFEST).read_text())
    for shard in manifest["shards"]:
        path = layout.record_path(root, shard["name"])
        record = json.loads(path.read_text())
        for entry in (shard["tar"], shard["parquet"]):
            entry["bytes"] = (root / entry["path"]).stat().st_size
            entry["sha256"] = file_sha256(root / entry["path"])
        record["shard"] = shard
        write_sealed(path, record)
    for entry in (manifest["plan"], manifest["rejected"]):
        entry["bytes"] = (root / entry["path"]).stat().st_size
        entry["sha256"] = file_sha256(root / entry["path"])
    write_sealed(root / layout.MANIFEST, manifest)


def _retar(path, change):
    """Rewrite a tar after ``change(members)``, a list of (TarInfo, bytes)."""
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))


def _member(name, data=b"hello", kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data) if kind == tarfile.REGTYPE else 0
    return info, data


def test_what_git_lfs_has_not_fetched_is_called_so(copy):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 874538362\n".format("0" * 64)
    for name in ("00000.tar", "00001.parquet"):
        (copy / "shards" / name).write_text(pointer)
    code, output = _verify(copy)
    assert code == 1
    assert " ".join(output.split()).count("pointer of Git LFS") == 2
    with pytest.raises(AlignDetError, match="run `git lfs pull`"):
        ProposalReader(copy)[len(ProposalReader(copy)) // 2]


def _unfetched(mined, root, shards):
    """A clone of ``shards`` shards, of which Git LFS has fetched nothing."""
    content = json.loads((mined / layout.MANIFEST).read_text())
    first, totals = content["shards"][0], content["totals"]
    text = json.dumps(first)
    content["shards"] = [json.loads(text.replace("00000", f"{number:05d}", 3)) for number in range(shards)]
    totals |= {name: shards * first[name] for name in ("images", "proposals")} | {"rejected": 0}
    content["source"]["images"] = totals["images"]
    (root / "shards").mkdir(parents=True)
    for shard in content["shards"]:
        for entry in (shard["tar"], shard["parquet"]):
            (root / entry["path"]).write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
            )
    write_sealed(root / layout.MANIFEST, content)
    return root


def test_of_many_wrong_files_each_is_looked_at_without_all_the_others(mined_dataset, tmp_path):
    calls = []
    for shards in (50, 200):
        profile = cProfile.Profile()
        report = profile.runcall(verify_dataset, _unfetched(mined_dataset, tmp_path / str(shards), shards))
        assert sum("pointer of Git LFS" in problem.what for problem in report.problems) == 2 * shards
        calls.append(sum(entry.callcount for entry in profile.getstats()))
    assert calls[1] < 5 * calls[0]


def test_names_of_strangers_do_not_reach_the_terminal_as_they_are(copy):
    (copy / "\x1b[2Jevil\nx is clean").write_text("x")
    (copy / f"\x1b[31m.tmp-{_HEX}").write_text("x")
    _column("key", lambda keys: keys.__setitem__(1, "\x1b]0;title\x07"))(copy)
    _reseal(copy)
    status, output = _verify(copy)
    assert status == 1
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "\\x1b[2Jevil\\nx is clean: is unexpected" in output
    assert "note: \\x1b[31m.tmp-" in output
    assert "row 1, \\x1b]0;title\\x07: the key is not that of its uri" in output


def test_a_clean_dataset_is_clean(mined_dataset):
    for options in ([], ["--deep"]):
        status, output = _verify(mined_dataset, *options)
        assert (status, "is clean: 8 images" in output) == (0, True), output
    status, output = _verify(mined_dataset, "--json")
    report = json.loads(output)
    assert (status, report["clean"], report["problems"], report["shards"]) == (0, True, [], 3)


def test_a_tiff_that_is_stored_on_its_side_is_as_sound_as_any(photos, mine_folder, tmp_path):
    (tmp_path / "in").mkdir()
    with Image.open(photos / "cat.jpg") as cat:
        assert cat.width != cat.height
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            for suffix in ("tif", "jpg", "png"):
                cat.save(tmp_path / "in" / f"{orientation}.{suffix}", exif=exif)
    report = verify_dataset(mine_folder(tmp_path / "in", tmp_path / "out"), deep=True)
    assert (report.images, report.problems) == (24, ())


def test_fifty_flipped_bits_are_found(copy):
    consolidate(copy)
    command = [sys.executable, str(_SCRIPT), str(copy), "--flips", "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = ("dataset.json,", "plan.parquet,", "rejected.parquet,", ".tar,", "proposals.zarr/")
    assert all(kind in done.stdout for kind in kinds)
    assert done.stdout.endswith("50 of 50 flips found; the clean copy: 0 problems before, 0 after\n")


def test_truncation_a_missing_and_swapped_shards_are_named(copy):
    tar, other = layout.tar_path(copy, "00000"), layout.tar_path(copy, "00001")
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-600])
    assert f"has {len(whole) - 600} bytes, dataset.json says {len(whole)}" in _named(
        copy, "shards/00000.tar", deep=False
    )
    tar.write_bytes(other.read_bytes())
    other.write_bytes(whole)
    assert "it is that of shard 00001" in _named(copy, "shards/00000.tar")
    assert "it is that of shard 00000" in _named(copy, "shards/00001.tar")
    for path in copy.glob("shards/00002.*"):
        path.unlink()
    status, output = _verify(copy)
    assert status == 1
    for kind in ("tar", "parquet", "json"):
        assert f"shards/00002.{kind}: is missing" in output
    assert "shards: 00000, 00001, 00002" in output
    assert _verify(copy, "--workers", "2") == (status, output)


def test_swapped_commit_records_are_named(copy):
    one, two = (layout.record_path(copy, name) for name in ("00000", "00001"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert "tells of shard 00001" in _named(copy, "shards/00000.json", deep=False)
    assert verify_dataset(copy).damaged_shards == ("00000", "00001")


_MEMBERS = {
    "extra": (_member("zebra.jpg"), "'zebra.jpg' is unexpected: no row has it"),
    "climbing": (_member("../evil.jpg"), "'../evil.jpg' leaves the folder"),
    "absolute": (_member("/evil.jpg"), "'/evil.jpg' leaves the folder"),
    "symlink": (_member("link.jpg", kind=tarfile.SYMTYPE, target="/"), "'link.jpg' is a symbolic link"),
    "device": (_member("null.jpg", kind=tarfile.CHRTYPE), "'null.jpg' is a device or special file"),
    "pickle": (_member("model.pkl"), "'model.pkl' is a pickle"),
}


@pytest.mark.parametrize("kind", list(_MEMBERS))
@pytest.mark.parametrize("resealed", [False, True])
def test_a_member_that_does_not_belong_is_named(copy, kind, resealed):
    member, message = _MEMBERS[kind]
    _retar(layout.tar_path(copy, "00001"), lambda members: members.insert(2, member))
    if resealed:
        _reseal(copy)
        assert "model" not in _named(copy, "shards/00001.tar", deep=False)  # that takes reading the tar
    found = _named(copy, "shards/00001.tar")
    assert message in found
    assert ("dataset.json says" in found) is not resealed
    assert verify_dataset(copy, deep=True).damaged_shards == ("00001",)


def _swap_image(members):
    members[0], members[2] = (members[0][0], members[2][1]), (members[2][0], members[0][1])
    for info, data in members:
        info.size = len(data)


def _edit_annotation(members):
    info, data = members[1]
    content = json.loads(data)
    content["boxes"][0][0] += 1
    data = json.dumps(content).encode()
    info.size = len(data)
    members[1] = info, data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members.pop(), "is missing"),
        (lambda members: members.append(members[0]), "is there twice"),
        (lambda members: members.insert(0, members.pop(1)), "not in the order of the rows"),
        (lambda members: setattr(members[0][0], "mtime", 1), "another time, owner or mode"),
        (_swap_image, "has another sha256"),
        (_edit_annotation, "does not say what the table says"),
    ],
)
def test_a_tar_that_disagrees_with_its_table_is_named(copy, change, message):
    _retar(layout.tar_path(copy, "00000"), change)
    _reseal(copy)
    assert message in _named(copy, "shards/00000.tar")


def test_bytes_after_the_end_of_a_tar_are_named(copy):
    path = layout.tar_path(copy, "00000")
    path.write_bytes(path.read_bytes() + b"hidden" + bytes(506))
    _reseal(copy)
    assert "holds something after its last member" in _named(copy, "shards/00000.tar")


def _column(name, change):
    def rewrite(root):
        path = layout.parquet_path(root, "00000")
        table = pq.read_table(path)
        values = table.column(name).to_pylist()
        change(values)
        field = table.schema.field(name)
        column = pa.array(values, field.type)
        pq.write_table(table.set_column(table.schema.get_field_index(name), field, column), path)

    return rewrite


def test_an_image_that_is_turned_otherwise_than_the_table_says_is_named(copy):
    _column("orientation", lambda turned: turned.__setitem__(0, 3))(copy)
    _reseal(copy)
    assert "has EXIF orientation 1, the table says 3" in _named(copy, "shards/00000.tar")


def _first_box(box):
    return _column("boxes", lambda boxes: boxes[1].__setitem__(0, box))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_first_box([0, 0, np.inf, 9]), "is not finite"),
        (_first_box([np.nan, 0, 9, 9]), "is not finite"),
        (_first_box([5, 5, 5, 9]), "is empty"),
        (_first_box([-1, 0, 9, 9]), "leaves the image"),
        (_first_box([0, 0, 9, 1e6]), "leaves the image"),
        (_column("rank", lambda ranks: ranks[1].reverse()), "ranks do not ascend"),
        (_column("key", lambda keys: keys.__setitem__(1, keys[0])), "the key is not that of its uri"),
        (_column("width", lambda widths: widths.__setitem__(1, 2**30)), "is impossible"),
        (_column("width", lambda widths: widths.__setitem__(1, 0)), "leaves the image"),
        (_column("orientation", lambda turns: turns.__setitem__(1, 9)), "is impossible"),
        (_column("status", lambda statuses: statuses.__setitem__(1, "splendid")), "statuses are"),
    ],
)
def test_rows_that_cannot_be_are_named(copy, change, message):
    change(copy)
    _reseal(copy)
    found = _named(copy, "shards/00000.parquet", deep=False)
    assert message in found
    assert "row 1" in found or "statuses" in found


def _replan(change):
    def rewrite(root):
        table = pq.read_table(root / layout.PLAN)
        rows = table.to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), root / layout.PLAN)

    return rewrite


def _forget_identity(root):
    pq.write_table(pq.read_table(root / layout.PLAN).replace_schema_metadata(None), root / layout.PLAN)


def _rename_plan_column(root):
    table = pq.read_table(root / layout.PLAN)
    pq.write_table(table.rename_columns(["shard", "key", "uri", "bytes"]), root / layout.PLAN)


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        (
            _replan(lambda rows: rows[0].update(uri="x.jpg")),
            "shards/00000.json",
            "'x.jpg' is planned but neither",
        ),
        (
            _replan(lambda rows: rows.insert(0, rows.pop(1))),
            "shards/00000.json",
            "not in the order of the plan",
        ),
        (_replan(lambda rows: rows[0].update(key=rows[1]["key"])), "plan.parquet", "same key"),
        (_replan(lambda rows: rows[7].update(shard=9)), "plan.parquet", "not those of dataset.json"),
        (_replan(lambda rows: rows.pop()), "plan.parquet", "has 7 rows"),
        (_forget_identity, "plan.parquet", "is damaged"),
        (_rename_plan_column, "plan.parquet", "column size must be int64"),
    ],
)
def test_a_plan_that_disagrees_with_the_rows_is_named(copy, change, file, message):
    change(copy)
    _reseal(copy)
    assert message in _named(copy, file, deep=False)


_HEX = "0123456789abcdef" * 2
_LEFT = f"shards/00000.tar.tmp-{_HEX}"


def test_files_that_do_not_belong_are_named(copy):
    (copy / "notes.txt").write_text("x")
    (copy / "shards" / "model.pkl").write_bytes(b"x")
    (copy / "elsewhere").symlink_to("/")
    (copy / _LEFT).write_bytes(b"left by a task that died")
    parquet = layout.parquet_path(copy, "00002")
    shutil.move(parquet, copy.parent / "moved")
    parquet.symlink_to(copy.parent / "moved")
    report = verify_dataset(copy)
    unexpected = {problem.file for problem in report.problems if "unexpected" in problem.what}
    assert unexpected == {"notes.txt", "shards/model.pkl", "elsewhere"}
    assert _named(copy, "shards/00002.parquet", deep=False) == "is a symbolic link, not a file"
    assert report.unfinished == (_LEFT,)


@pytest.mark.parametrize(
    ("file", "left"),
    [
        (f"plan.parquet.tmp-{_HEX}", True),
        (f"shards/00003.parquet.tmp-{_HEX}", True),
        (f"proposals.zarr.tmp-{_HEX}/boxes/zarr.json", True),
        (f"repair.tmp-{_HEX}/shards/00000.tar", True),
        ("shards/x.tmp-1.parquet", False),
        ("shards/00003.parquet.tmp-1234", False),
        (f"shards/x.tmp-{_HEX}.parquet", False),
        (f"shards/x.tmp-{_HEX}/00003.parquet", False),
        (f"x.tmp-{_HEX}/00003.tar", False),
    ],
)
def test_only_what_our_own_writers_call_so_is_taken_for_a_leftover(copy, file, left):
    (copy / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(layout.parquet_path(copy, "00000"), copy / file)
    report = verify_dataset(copy)
    assert report.unfinished == ((file,) if left else ())
    assert [problem.file for problem in report.problems] == ([] if left else [file])


def _more_in_the_plan(table):
    rows = table.to_pylist()
    return pa.Table.from_pylist([*rows, {**rows[-1], "shard": 3, "uri": "x.jpg"}], schema=table.schema)


def _of_another_recipe(table):
    metadata = table.schema.metadata[b"aligndet.job"]
    return table.replace_schema_metadata({b"aligndet.job": metadata.replace(b'"seed":0', b'"seed":1')})


@pytest.mark.parametrize(
    ("plan", "left"),
    [
        (None, []),
        (_of_another_recipe, []),
        (lambda table: table.replace_schema_metadata(None), []),
        (_more_in_the_plan, ["append.parquet", "shards/00003.parquet"]),
    ],
)
def test_shards_beyond_the_last_are_explained_only_by_a_plan_that_adds_them(copy, plan, left):
    if plan is None:
        (copy / layout.APPEND).touch()
    else:
        table = pq.read_table(copy / layout.PLAN)
        told = json.loads(table.schema.metadata[b"aligndet.job"])
        told["source"]["images"] += plan is _more_in_the_plan
        changed = plan(
            table.replace_schema_metadata({b"aligndet.job": json.dumps(told, separators=(",", ":"))})
        )
        pq.write_table(changed, copy / layout.APPEND)
    more = ["append.parquet", "shards/00003.parquet", "shards/00009.parquet"]
    for file in more[1:]:
        shutil.copy(layout.parquet_path(copy, "00000"), copy / file)
    report = verify_dataset(copy)
    assert list(report.unfinished) == left
    assert sorted(problem.file for problem in report.problems) == [file for file in more if file not in left]


def _appended(root, groups):
    """A plan in ``root`` that adds ``groups`` times 131,072 images, each a name of 120 bytes."""
    schema = pq.read_schema(root / layout.PLAN)
    told = json.loads(schema.metadata[b"aligndet.job"])
    told["source"]["images"] = 2**17 * groups
    metadata = {b"aligndet.job": json.dumps(told, separators=(",", ":")).encode()}
    columns = [np.full(2**17, 9, np.int32), ["k" * 65] * 2**17, ["u" * 120] * 2**17, np.ones(2**17, np.int64)]
    table = pa.table(columns, schema=schema.with_metadata(metadata))
    with pq.ParquetWriter(root / layout.APPEND, table.schema) as writer:
        for _ in range(groups):
            writer.write_table(table, row_group_size=2**17)


_PEAK = """
import sys
from pathlib import Path
from proposals.dataset.verify import verify_dataset

report = verify_dataset(Path(sys.argv[1]))
assert (report.problems, report.unfinished) == ((), ("append.parquet", "shards/00009.parquet")), report
# Not ru_maxrss: a child starts with its parent's.
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_plan_that_adds_many_images_takes_the_memory_of_a_part_of_it(copy):
    shutil.copy(layout.parquet_path(copy, "00000"), layout.parquet_path(copy, "00009"))
    peaks = []
    for groups in (1, 12):
        _appended(copy, groups)
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(copy)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    of_one = 2**17 * (65 + 120 + 24) // 1000  # kB
    assert peaks[1] - peaks[0] < 4 * of_one


def test_what_belongs_to_a_repository_is_no_damage(copy):
    for file in ("README.md", "croissant.json", ".gitattributes", ".git/HEAD", ".cache/huggingface/x.lock"):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_text("of a hub")
    (copy / ".git" / "link").symlink_to("/")
    assert _verify(copy, "--deep")[0] == 0


@pytest.mark.parametrize(
    "file", ["shards/README.md", "shards/.git/HEAD", ".cache/other", "a/.cache/huggingface/x"]
)
def test_elsewhere_such_names_are_unexpected(copy, file):
    (copy / file).parent.mkdir(parents=True, exist_ok=True)
    (copy / file).write_text("x")
    assert "is unexpected" in _named(copy, file, deep=False)


@pytest.mark.parametrize("name", ["README.md", ".git"])
def test_a_link_in_place_of_a_repositorys_file_is_unexpected(copy, name):
    (copy / name).symlink_to("/")
    assert "is unexpected" in _named(copy, name, deep=False)


@pytest.mark.parametrize(
    "content", ["{}", '{"format": "aligndet-proposals"}', '{"format_version": "1.0"}', "[]"]
)
def test_a_manifest_without_format_or_version_is_named(copy, content):
    (copy / layout.MANIFEST).write_text(content)
    assert "cannot be read" in _named(copy, layout.MANIFEST, deep=False)


def test_leftovers_alone_are_no_damage(copy):
    (copy / _LEFT).write_bytes(b"left by a task that died")
    status, output = _verify(copy, "--deep")
    assert status == 0
    assert f"note: {_LEFT}" in output


def test_a_json_without_its_digest_is_not_trusted(copy):
    for path in (copy / layout.MANIFEST, layout.record_path(copy, "00001")):
        content = json.loads(path.read_text())
        del content["digest"]
        path.write_text(json.dumps(content))
    found = {problem.file for problem in verify_dataset(copy).problems}
    assert found == {layout.MANIFEST, "shards/00001.json"}


def test_a_folder_that_is_no_dataset_is_a_users_error(tmp_path):
    result = CliRunner().invoke(build_app(), ["verify", str(tmp_path)])
    assert "not a proposal dataset" in str(result.exception)


def test_a_png_that_was_damaged_when_it_was_taken_in_is_named(tmp_path, monkeypatch):
    """Versions that did not look at checksums have mined and imported such images."""
    (tmp_path / "images").mkdir()
    y, x = np.mgrid[0:96, 0:128]
    smooth = np.stack([127 + 80 * np.sin(x / 9) + 20 * np.cos(y / 5), x * 2 % 256, (y * 2 + x) % 256], 2)
    noise = np.random.default_rng(0).normal(0, 6, smooth.shape)
    pixels = (smooth + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "sound.png")
    whole = (tmp_path / "images" / "sound.png").read_bytes()
    half = len(whole) // 2
    (tmp_path / "images" / "half.png").write_bytes(whole[:half] + bytes(len(whole) - half))
    boxes = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(("sound.png", "half.png"))],
        "annotations": [{"id": i + 1, "image_id": i, "bbox": [1, 2, 30, 40]} for i in range(2)],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    root, words = tmp_path / "out", ("--to", "dataset", "--images", str(tmp_path / "images"))
    with monkeypatch.context() as former:
        former.setattr("proposals.images.has_sound_checksums", lambda data: True)
        CliRunner().invoke(build_app(), ["convert", str(tmp_path / "boxes.json"), str(root), *words])
    assert verify_dataset(root).problems == ()
    assert len(pq.read_table(root / "shards" / "00000.parquet")) == 2
    (problem,) = verify_dataset(root, deep=True).problems
    assert "was damaged before it was mined" in str(problem)
    assert "half" in str(problem)
