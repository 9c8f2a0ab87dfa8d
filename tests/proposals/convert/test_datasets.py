"""Whole datasets through the verb: out and back, the Hugging Face folder, memory."""

import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.sources.opening import open_source
from proposals.cli import build_app
from proposals.convert.hub import dataset_card
from proposals.dataset import open_dataset
from proposals.dataset.manifest import FileEntry, read_manifest, write_model
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe


def _convert(*arguments):
    done = CliRunner().invoke(build_app(), ["convert", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("form", ["coco", "soco", "detectron2", "mmdet"])
def test_a_dataset_comes_back_from_every_form(mined_dataset, photos, tmp_path, form):
    names = tmp_path / "names.json"
    images = [
        {"id": 100 + i, "file_name": record.uri} for i, record in enumerate(open_dataset(mined_dataset))
    ]
    names.write_text(json.dumps({"images": images, "annotations": []}))
    _convert(mined_dataset, tmp_path / "file", "--to", form, "--folder", photos.name, "--ids", names)
    back, more = tmp_path / "back", ("--allow-pickle", "--ids", names)
    _convert(tmp_path / "file", back, "--from", form, "--to", "dataset", "--images", photos, *more)
    expected = {record.uri: record for record in open_dataset(mined_dataset)}
    found = open_dataset(back)
    assert len(found) == 8
    assert found.manifest.source.kind == f"import-{form}"
    for record in found:
        assert np.array_equal(record.boxes, expected[record.uri].boxes)
        assert record.image_bytes() == expected[record.uri].image_bytes()
        assert (record.width, record.height) == (expected[record.uri].width, expected[record.uri].height)
        if form != "soco":
            assert np.array_equal(record.rank, expected[record.uri].rank)


def test_images_that_do_not_fit_are_rejected_and_listed(photos, tmp_path):
    cat, box = cv2.imread(str(photos / "cat.jpg")), {"bbox": [-5, -5, 2000, 20]}
    sizes = {"cat.jpg": cat.shape[1::-1], "coffee.jpg": (7, 7), "missing.jpg": (9, 9), "china.jpg": (0, 0)}
    images = [
        {"id": i, "file_name": name, "width": width, "height": height}
        for i, (name, (width, height)) in enumerate(sizes.items())
    ]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": [{**box, "image_id": i} for i in range(3)]}))
    output = _convert(path, tmp_path / "out", "--to", "dataset", "--images", photos)
    assert "2 images, 2 boxes, 2 images rejected" in output
    cat_record, china = open_dataset(tmp_path / "out")
    assert cat_record.boxes.tolist() == [[0, 0, cat.shape[1], 15]]
    assert china.boxes.tolist() == [[0, 0, china.width, china.height]]
    assert (cat_record.status, china.status) == ("ok", "fallback_whole_image")
    reasons = CliRunner().invoke(build_app(), ["stats", str(tmp_path / "out"), "--json"]).output
    assert json.loads(reasons)["rejected"] == {"read: other_size": 1, "read: not_found": 1}


def test_a_name_of_megabytes_is_rejected_and_the_dataset_sound(photos, tmp_path):
    names = ["cat.jpg", "data:image/jpeg;base64," + "A" * 3_000_000]
    images = [{"id": i, "file_name": name, "width": 1, "height": 1} for i, name in enumerate(names)]
    path = tmp_path / "boxes.json"
    path.write_text(
        json.dumps({"images": [{**images[0], "width": 0, "height": 0}, images[1]], "annotations": []})
    )
    assert "1 images rejected" in _convert(path, tmp_path / "out", "--to", "dataset", "--images", photos)
    assert verify_dataset(tmp_path / "out", deep=True).problems == ()


def test_a_file_larger_than_readers_take_is_rejected(photos, tmp_path, monkeypatch):
    limit = (photos / "cat.jpg").stat().st_size
    monkeypatch.setattr("proposals.fetch.MAX_IMAGE_BYTES", limit)
    larger = next(path.name for path in sorted(photos.glob("*.jpg")) if path.stat().st_size > limit)
    _coco(tmp_path / "boxes.json", "cat.jpg", larger)
    _convert(tmp_path / "boxes.json", tmp_path / "out", "--to", "dataset", "--images", photos)
    dataset = open_dataset(tmp_path / "out")
    assert [record.uri for record in dataset] == ["cat.jpg"]
    (row,) = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert (row["uri"], row["reason"]) == (larger, "too_large")


def _coco(path, *names):
    """A COCO json of these images, one box each, told apart by its width: 10 px for the first, then 20, 30 ..."""
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    boxes = [{"bbox": [0, 0, 10 * (i + 1), 9], "image_id": i} for i in range(len(names))]
    path.write_text(json.dumps({"images": images, "annotations": boxes}))
    return path


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def namesakes(photos, tmp_path):
    """Two pictures called cat.jpg, one in a folder, and one whose stem is the name of a third."""
    folder = tmp_path / "pictures"
    (folder / "z").mkdir(parents=True)
    shutil.copy(photos / "cat.jpg", folder / "cat.jpg")
    shutil.copy(photos / "china.jpg", folder / "z" / "cat.jpg")
    shutil.copy(photos / "coffee.jpg", folder / "zebra.jpg")
    return folder


@pytest.mark.parametrize("names", [("cat.jpg", "z/cat.jpg"), ("z/cat.jpg", "cat.jpg"), ("pictures/cat.jpg",)])
def test_the_exact_path_wins_over_namesakes_in_other_folders(namesakes, tmp_path, names):
    _convert(_coco(tmp_path / "in", *names), tmp_path / "out", "--to", "dataset", "--images", namesakes)
    found = {record.uri: record for record in open_dataset(tmp_path / "out")}
    assert set(found) == {name.removeprefix("pictures/") for name in names}
    for place, name in enumerate(names):
        record = found[name.removeprefix("pictures/")]
        assert record.boxes.tolist() == [[0, 0, 10 * (place + 1), 9]]
        assert record.image_bytes() == (namesakes.parent / "pictures" / record.uri).read_bytes()


@pytest.mark.parametrize(
    "names", [("zebra.jpg", "./zebra.jpg"), ("x/zebra.jpg", "y/zebra.jpg"), ("zebra", "zebra"), ("no", "no")]
)
def test_two_entries_of_one_image_are_refused_by_name(namesakes, tmp_path, names):
    path = _coco(tmp_path / "in", "cat.jpg", *names)
    with pytest.raises(AlignDetError, match=rf"'{names[0]}' and '{names[1]}'"):
        _convert(path, tmp_path / "out", "--to", "dataset", "--images", namesakes)
    assert not (tmp_path / "out").exists()


def test_an_entry_does_not_take_the_file_that_another_names_by_path(namesakes, tmp_path):
    path = _coco(tmp_path / "in", "val/zebra.jpg", "zebra.jpg", "b/cat.jpg", "/lost/caf\udce9.jpg")
    _convert(path, tmp_path / "out", "--to", "dataset", "--images", namesakes)
    (record,) = open_dataset(tmp_path / "out")
    assert (record.uri, record.boxes.tolist()) == ("zebra.jpg", [[0, 0, 20, 9]])
    assert open_dataset(tmp_path / "out").manifest.totals.rejected == 3
    assert verify_dataset(tmp_path / "out", deep=True).problems == ()


def test_links_to_images_are_followed_as_in_mining(namesakes, photos, tmp_path):
    links = tmp_path / "links"
    (links / "one").mkdir(parents=True)
    (links / "one" / "dog.jpg").symlink_to(namesakes / "cat.jpg")
    (links / "two").symlink_to(links / "one")
    (links / "dog.jpg").symlink_to(namesakes / "cat.jpg")
    (links / "circle").symlink_to(links)
    path = _coco(tmp_path / "in", "one/dog.jpg", "dog.jpg", "x/dog.jpg")
    _convert(path, tmp_path / "out", "--to", "dataset", "--images", links)
    assert [record.uri for record in open_dataset(tmp_path / "out")] == ["one/dog.jpg", "dog.jpg"]
    _convert(_coco(tmp_path / "by_name", "x/dog"), tmp_path / "other", "--to", "dataset", "--images", links)
    assert len(open_dataset(tmp_path / "other")) == 1  # three links, one picture


def test_detectron2_without_ids_asks_for_them(mined_dataset, photos, tmp_path):
    names = {
        "images": [{"id": 70 + i, "file_name": r.uri} for i, r in enumerate(open_dataset(mined_dataset))]
    }
    (tmp_path / "names.json").write_text(json.dumps(names))
    file, out, read = tmp_path / "file", tmp_path / "out", ("--from", "detectron2", "--allow-pickle")
    _convert(mined_dataset, file, "--to", "detectron2", "--ids", tmp_path / "names.json")
    into = (file, out, "--to", "dataset", "--images", photos, *read)
    with pytest.raises(AlignDetError, match=r"by id, such as 70, .*--ids ANNOTATIONS\.json"):
        _convert(*into)
    assert "8 images" in _convert(*into, "--ids", tmp_path / "names.json")


@pytest.mark.parametrize("made_before", [False, True])
def test_a_failed_import_leaves_nothing_in_the_way_of_the_next(photos, tmp_path, made_before):
    path, out, bad = _coco(tmp_path / "in", "cat.jpg"), tmp_path / "out", tmp_path / "bad"
    bad.mkdir()
    (bad / "cat.jpg").write_bytes(b"no image")
    if made_before:
        out.mkdir()
    with pytest.raises(AlignDetError, match=r"none of the 1 images could be taken.*cat\.jpg"):
        _convert(path, out, "--to", "dataset", "--images", bad)
    assert out.exists() is made_before
    assert "1 images" in _convert(path, out, "--to", "dataset", "--images", photos)
    assert verify_dataset(out, deep=True).problems == ()


_STOPPED = """
import os, sys
from pathlib import Path
from proposals.convert import ImageBoxes, Source
from proposals.convert.coco import CocoSource
from proposals.convert.ingest import Import, write_dataset
from proposals.recipe import Recipe

class Dying(CocoSource):
    walks = 0
    def images(self):
        self.walks += 1
        for place, image in enumerate(super().images()):
            if self.walks == 2 and place == 1:
                os.kill(os.getpid(), 9)
            yield image

job = Import(Dying(Path(sys.argv[1])), "coco", Path(sys.argv[2]), Recipe(), images_per_shard=1)
write_dataset(job, Path(sys.argv[3]))
"""


def test_a_killed_import_is_told_what_to_delete(photos, tmp_path):
    path, out = _coco(tmp_path / "in", "cat.jpg", "china.jpg"), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", _STOPPED, str(path), str(photos), str(out)], check=False)
    assert done.returncode == -9
    left = _contents(out)
    assert {file.relative_to(out).as_posix() for file in left} > {"plan.parquet", "shards/00000.json"}
    with pytest.raises(
        AlignDetError, match=r"conversion that was stopped, delete \S+out/shards, \S+plan.parquet"
    ):
        _convert(path, out, "--to", "dataset", "--images", photos)
    assert _contents(out) == left


def test_a_failed_hugging_face_folder_leaves_nothing(mined_dataset, tmp_path):
    copy = shutil.copytree(mined_dataset, tmp_path / "copy")
    (copy / "shards" / "00002.tar").unlink()
    with pytest.raises(AlignDetError, match=r"00002\.tar is missing"):
        _convert(copy, tmp_path / "out", "--to", "huggingface")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "{copy}", "{copy}/dataset.json", "--to", "coco"),
        ("convert", "{copy}", "{copy}/hub", "--to", "huggingface"),
        ("report", "{copy}", "-o", "{copy}/shards/00000.tar"),
        ("report", "{copy}", "-o", "{copy}/report.html"),
        ("report", "{copy}", "-o", "{link}"),
        ("show", "{copy}", "--out", "{copy}/plan.png"),
        ("merge", "{copy}", "-o", "{copy}/merged"),
    ],
)
def test_nothing_is_written_into_a_dataset(mined_dataset, tmp_path, arguments):
    copy, link = shutil.copytree(mined_dataset, tmp_path / "copy"), tmp_path / "page.html"
    link.symlink_to(copy / "rejected.parquet")
    before = _contents(copy)
    command = [part.format(copy=copy, link=link) for part in arguments]
    assert "lies inside the dataset" in str(CliRunner().invoke(build_app(), command).exception)
    assert _contents(copy) == before


@pytest.mark.parametrize("same", ["source", "ids", "link to source"])
def test_what_is_read_is_not_written_over(photos, tmp_path, same):
    source, ids = _coco(tmp_path / "in.json", "cat.jpg"), _coco(tmp_path / "ids.json", "cat.jpg")
    (tmp_path / "link.json").symlink_to(source)
    out = {"source": source, "ids": ids, "link to source": tmp_path / "link.json"}[same]
    before = _contents(tmp_path)
    with pytest.raises(AlignDetError, match="is what is read, and would be written over"):
        _convert(source, out, "--to", "coco", "--ids", ids)
    assert _contents(tmp_path) == before


_CAT = {"id": 1, "file_name": "cat.jpg"}
_BOX = {"image_id": 1, "bbox": [0, 0, 5, 5]}


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([_CAT, {**_CAT, "file_name": "china.jpg"}], [], "id 1 is there twice"),
        ([_CAT], [{**_BOX, "image_id": [1]}], "unhashable"),
        ([_CAT], [{"bbox": [0, 0, 5, 5]}], "image_id"),
        ([{**_CAT, "width": float("inf")}], [], "infinity"),
        ([_CAT], [{**_BOX, "bbox": [0, 0, 1e300, 5]}], "finite"),
        ([_CAT], [{**_BOX, "rank": -1e300}], "finite"),
    ],
)
def test_a_coco_file_that_cannot_be_meant_is_refused(photos, tmp_path, images, annotations, message):
    path = tmp_path / "in"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(AlignDetError, match=message):
        _convert(path, tmp_path / "out", "--to", "dataset", "--images", photos)
    assert not (tmp_path / "out").exists()


def test_boxes_are_put_in_the_order_of_their_ranks(photos, tmp_path):
    path, ranks = tmp_path / "in", (7, 3, 7, 5)
    boxes = [{**_BOX, "bbox": [0, 0, 10 + i, 5], "rank": rank} for i, rank in enumerate(ranks)]
    path.write_text(json.dumps({"images": [_CAT], "annotations": boxes}))
    _convert(path, tmp_path / "out", "--to", "dataset", "--images", photos)
    (record,) = open_dataset(tmp_path / "out")
    assert record.rank.tolist() == [3, 5, 7, 7]
    assert record.boxes[:, 2].tolist() == [11, 13, 10, 12]
    assert verify_dataset(tmp_path / "out", deep=True).problems == ()


@pytest.mark.parametrize(
    "broken", [{"scores": [np.nan]}, {"scores": [np.inf]}, {"bboxes": [[0, 0, np.nan, 9]]}]
)
def test_a_pickle_with_a_number_that_is_none_is_refused(photos, tmp_path, broken):
    found = {"bboxes": [[0, 0, 9, 9]], "scores": [1]} | broken
    content = {"x/cat.jpg": {name: np.array(values, np.float32) for name, values in found.items()}}
    (tmp_path / "in").write_bytes(pickle.dumps(content))
    with pytest.raises(AlignDetError, match=r"'x/cat\.jpg' is not finite"):
        _convert(
            tmp_path / "in",
            tmp_path / "out",
            "--from",
            "mmdet",
            "--allow-pickle",
            "--to",
            "dataset",
            "--images",
            photos,
        )


@pytest.mark.parametrize(
    "image", [{"file_name": "x"}, {"id": "x", "file_name": "x"}, "x", {"id": [], "file_name": "x"}]
)
def test_broken_ids_are_a_users_error(mined_dataset, tmp_path, image):
    (tmp_path / "ids").write_text(json.dumps({"images": [image]}))
    with pytest.raises(AlignDetError, match="Each needs id and file_name"):
        _convert(mined_dataset, tmp_path / "out", "--to", "detectron2", "--ids", tmp_path / "ids")


@pytest.mark.parametrize("form", ["coco", "detectron2"])
def test_one_id_for_two_images_is_refused(photos, mine_folder, tmp_path, form):
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        shutil.copy(photos / "cat.jpg", tmp_path / "in" / folder / "1.jpg")
    dataset, ids, out = mine_folder(tmp_path / "in", tmp_path / "dataset"), tmp_path / "ids", tmp_path / "out"
    ids.write_text(json.dumps({"images": [{"id": 7, "file_name": "1.jpg"}]}))
    with pytest.raises(AlignDetError, match=r"one id, 7, for two images: a/1\.jpg and b/1\.jpg"):
        _convert(dataset, out, "--to", form, "--ids", ids)
    assert not out.exists()
    ids.write_text(json.dumps({"images": [{"id": i, "file_name": f"{'ab'[i]}/1.jpg"} for i in (0, 1)]}))
    _convert(dataset, out, "--to", form, "--ids", ids)


def test_pickles_need_the_flag(mined_dataset, tmp_path):
    _convert(mined_dataset, tmp_path / "file", "--to", "mmdet", "--folder", "x")
    with pytest.raises(AlignDetError, match="--allow-pickle"):
        _convert(tmp_path / "file", tmp_path / "out", "--from", "mmdet", "--to", "coco")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "dataset"), "--images FOLDER"),
        (("--to", "coco", "--from", "soco"), "not a JSON object"),
        (("--to", "huggingface", "--from", "coco"), "First: aligndet convert"),
    ],
)
def test_what_is_missing_is_named(tmp_path, arguments, message):
    (tmp_path / "file").write_text("[]")
    with pytest.raises(AlignDetError, match=message):
        _convert(tmp_path / "file", tmp_path / "out", *arguments)


@pytest.fixture(scope="module")
def hub(mined_dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "repository"
    _convert(mined_dataset, out, "--to", "huggingface", "--name", 'A "name": <b>', "--license", "cc-by-4.0")
    return out


def test_the_hugging_face_folder_loads_with_datasets(hub, mined_dataset):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(hub), "boxes", split="train", cache_dir=str(hub.parent / "cache"))
    records = list(open_dataset(mined_dataset))
    assert loaded["uri"][:] == [record.uri for record in records]
    assert np.array_equal(np.float32(loaded[3]["boxes"]), records[3].boxes)
    tars = str(hub / "shards" / "*.tar")
    images = datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True)
    assert next(iter(images))["__key__"] == records[0].key


def test_the_hugging_face_folder_is_a_dataset_still_without_copies(hub, mined_dataset):
    assert len(open_dataset(hub)) == 8
    shard = "shards/00000.tar"
    assert (hub / shard).samefile(mined_dataset / shard)
    assert verify_dataset(hub, deep=True).problems == ()


def test_card_and_croissant_say_what_is_there(hub, mined_dataset):
    yaml = pytest.importorskip("yaml")
    card = (hub / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["pretty_name"], header["license"]) == ('A "name": <b>', "cc-by-4.0")
    assert header["size_categories"] == ["n<1K"]
    assert "<b>" not in card.split("---\n", 2)[2]
    croissant = json.loads((hub / "croissant.json").read_text())
    files = {entry["@id"]: entry for entry in croissant["distribution"] if "sha256" in entry}
    manifest = open_dataset(mined_dataset).manifest
    assert {path: entry["sha256"] for path, entry in files.items()} == {
        entry.path: entry.sha256 for shard in manifest.shards for entry in shard.files
    }
    columns = {field["source"]["extract"]["column"] for field in croissant["recordSet"][0]["field"]}
    assert columns < set(open_dataset(mined_dataset).table().column_names)


_PEAK = """
import sys
from pathlib import Path
import numpy as np
from proposals.convert import ImageBoxes
from proposals.convert.coco import CocoSource, write_coco
from proposals.convert.pickles import write_mmdet

class Synthetic:
    clustered = False
    def images(self):
        for i in range(int(sys.argv[1])):
            boxes = np.random.default_rng(i).uniform(0, 600, (20, 4)).astype(np.float32)
            yield ImageBoxes(f"a/{i:09d}.jpg", 640, 480, boxes, np.arange(20, dtype=np.float32))

out = Path(sys.argv[2])
write_coco(Synthetic(), out)
write_mmdet(Synthetic(), Path(sys.argv[2] + ".pkl"))
assert sum(len(image.rank) for image in CocoSource(out).images()) == 20 * int(sys.argv[1])
# Not ru_maxrss: a child starts with its parent's.
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def _peak_kilobytes(images, path):
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(images), str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_boxes(tmp_path):
    small, large = _peak_kilobytes(4_000, tmp_path / "a"), _peak_kilobytes(20_000, tmp_path / "b")
    names = 16_000 * 0.7  # kB: what is remembered of each image, about 700 bytes
    assert large - small < names + 4_000


def test_boxes_and_clusters_that_a_dataset_does_not_take_are_counted(photos, tmp_path):
    images = [{"id": i, "file_name": name} for i, name in enumerate(("cat.jpg", "china.jpg"))]
    boxes = [(0, [1, 2, 10, 10]), (0, [5, 5, 0, 9]), (0, [20, 20, -5, 5]), (1, [9000, 9000, 9, 9])]
    content = {
        "images": [{**image, "width": 0, "height": 0} for image in images],
        "annotations": [
            {"id": i + 1, "image_id": owner, "bbox": box, "category_id": i + 1}
            for i, (owner, box) in enumerate(boxes)
        ],
        "categories": [{"id": i, "name": f"cluster_{i}"} for i in range(1, 257)],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    said = _convert(path, tmp_path / "out", "--to", "dataset", "--images", photos)
    assert "2 images, 2 boxes, 0 images rejected" in said
    assert "3 boxes that are empty or outside of their image" in said
    assert "1 images without a box, which get one of their whole" in said
    assert "4 cluster ids (see `aligndet cluster`)" in said
    whole = _convert(tmp_path / "out", tmp_path / "file", "--to", "coco")
    assert "not taken over" not in whole + _convert(
        tmp_path / "file", tmp_path / "again", "--to", "dataset", "--images", photos
    )


def _boxes_of(found, uri):
    (record,) = (record for record in found if record.uri == uri)
    return record.boxes.tolist()


def test_scores_say_which_box_is_best_where_no_box_has_a_rank(photos, tmp_path):
    boxes = {"low": [0, 0, 9, 9], "high": [5, 5, 9, 9], "middle": [7, 7, 9, 9]}
    scores = {"low": 0.05, "high": 0.99, "middle": 0.5}
    of_cat = [{"image_id": 1, "bbox": box, "score": scores[name]} for name, box in boxes.items()]
    # A box without a score, or with a rank: the file's order, or the ranks.
    of_coffee = [{**box, "image_id": 2, **({"score": 0.1 * i} if i else {})} for i, box in enumerate(of_cat)]
    del of_coffee[0]["score"]
    of_china = [{**box, "image_id": 3, "rank": 7 - i} for i, box in enumerate(of_cat)]
    names = ("cat.jpg", "coffee.jpg", "china.jpg")
    images = [{"id": i + 1, "file_name": name} for i, name in enumerate(names)]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": [*of_cat, *of_coffee, *of_china]}))
    _convert(path, tmp_path / "out", "--to", "dataset", "--images", photos)
    found = list(open_dataset(tmp_path / "out"))
    left = {name: [int(box[0]) for box in _boxes_of(found, name)] for name in names}
    assert left == {"cat.jpg": [5, 7, 0], "coffee.jpg": [0, 5, 7], "china.jpg": [7, 5, 0]}


def _statuses(root):
    return {record.uri: record.status for record in open_dataset(root)}


def test_a_dataset_keeps_its_statuses_on_the_way_into_another(photos, mine_folder, tmp_path):
    images = shutil.copytree(photos, tmp_path / "images")
    cv2.imwrite(str(images / "gray.png"), np.full((20, 24, 3), 128, np.uint8))
    mined = mine_folder(images, tmp_path / "mined", Recipe(filter="ratio3size0001@0.5"))
    content = json.loads(_coco(tmp_path / "boxes.json", "cat.jpg", "china.jpg").read_text())
    (tmp_path / "boxes.json").write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
    _convert(tmp_path / "boxes.json", tmp_path / "imported", "--to", "dataset", "--images", photos)
    assert "fallback_no_size" in _statuses(mined).values()
    assert _statuses(tmp_path / "imported")["china.jpg"] == "fallback_whole_image"
    for root in (mined, tmp_path / "imported"):
        out = tmp_path / f"again_{root.name}"
        assert "not taken over" not in _convert(root, out, "--to", "dataset", "--images", images)
        assert _statuses(out) == _statuses(root)
        assert verify_dataset(out, deep=True).problems == ()


def test_boxes_do_not_land_on_another_image_of_the_same_name_and_size(mined_dataset, photos, tmp_path):
    _convert(mined_dataset, tmp_path / "boxes.json", "--to", "coco")
    others = tmp_path / "others"
    shutil.copytree(photos, others)
    cat = cv2.imread(str(photos / "cat.jpg"))
    cv2.imwrite(str(others / "cat.jpg"), 255 - cat)
    output = _convert(tmp_path / "boxes.json", tmp_path / "out", "--to", "dataset", "--images", others)
    assert "7 images, " in output
    assert "1 images rejected" in output
    reasons = CliRunner().invoke(build_app(), ["stats", str(tmp_path / "out"), "--json"]).output
    assert json.loads(reasons)["rejected"] == {"read: other_content": 1}


def test_images_out_of_a_datasets_tars_are_found_by_their_keys(mined_dataset, tmp_path):
    _convert(mined_dataset, tmp_path / "boxes.json", "--to", "coco")
    for tar in (mined_dataset / "shards").glob("*.tar"):
        shutil.unpack_archive(tar, tmp_path / "unpacked", filter="data")
    for image in list((tmp_path / "unpacked").glob("*.jpg")):
        image.with_suffix(".txt").write_text("0 0.5 0.5 1 1")  # labels of another program
    output = _convert(
        tmp_path / "boxes.json", tmp_path / "out", "--to", "dataset", "--images", tmp_path / "unpacked"
    )
    assert "8 images, " in output
    expected = {record.sha256: record.boxes.tolist() for record in open_dataset(mined_dataset)}
    assert {r.sha256: r.boxes.tolist() for r in open_dataset(tmp_path / "out")} == expected


def test_boxes_mined_from_tars_find_the_images_that_were_unpacked_from_them(photos, mine_folder, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    for number, name in enumerate(("cat.jpg", "coffee.jpg")):
        with tarfile.open(packed / f"{number}.tar", "w") as tar:
            tar.add(photos / name, arcname=f"of_{number}/0.jpg")
    mined = mine_folder(open_source(str(packed)), tmp_path / "mined")
    _convert(mined, tmp_path / "boxes.json", "--to", "coco")
    for tar in packed.glob("*.tar"):
        shutil.unpack_archive(tar, tmp_path / "unpacked", filter="data")
    _convert(tmp_path / "boxes.json", tmp_path / "out", "--to", "dataset", "--images", tmp_path / "unpacked")
    expected = [record.sha256 for record in open_dataset(mined)]
    assert sorted(record.sha256 for record in open_dataset(tmp_path / "out")) == sorted(expected)
    assert len(set(expected)) == 2


@pytest.mark.parametrize("harm", ["no record", "a short tar"])
def test_a_damaged_dataset_is_not_published(harm, mined_dataset, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(mined_dataset, damaged)
    if harm == "no record":
        (damaged / "shards" / "00000.json").unlink()
    else:
        with (damaged / "shards" / "00000.tar").open("r+b") as tar:
            tar.truncate(3000)
    result = CliRunner().invoke(
        build_app(), ["convert", str(damaged), str(tmp_path / "hub"), "--to", "huggingface"]
    )
    assert isinstance(result.exception, AlignDetError), result.output
    assert "shards/00000." in str(result.exception)
    assert not (tmp_path / "hub").exists() or not any((tmp_path / "hub").iterdir())


def test_the_card_says_how_images_of_several_kinds_are_read(photos, mine_folder, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(photos / "cat.jpg", mixed)
    cv2.imwrite(str(mixed / "other.png"), cv2.imread(str(photos / "coffee.jpg")))
    mined = mine_folder(mixed, tmp_path / "mined")
    output = _convert(mined, tmp_path / "hub", "--to", "huggingface", "--license", "mit")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "Extensions are jpg, png" in card
    assert "data_files" not in card.split("---")[2]
    assert "warning" not in output


def test_names_that_tell_of_the_machine_bring_a_warning(photos, mine_folder, tmp_path):
    listed = tmp_path / "list.txt"
    gone = photos / "rejected, and listed as such.jpg"
    listed.write_text(f"{photos / 'cat.jpg'}\n{photos / 'coffee.jpg'}\n{gone}\n")
    mined = mine_folder(open_source(str(listed)), tmp_path / "mined")
    output = _convert(mined, tmp_path / "hub", "--to", "huggingface", "--license", "mit")
    assert (
        f"warning: 3 of its images are named by their path on the machine that mined them, {photos}" in output
    )


@pytest.mark.parametrize(
    ("uri", "warned"),
    [
        ("https://me:word@h.example/a.jpg", True),
        ("https://token@h.example/a.jpg", True),
        ("s3://id:secret@bucket/a.jpg", True),
        ("https://h.example/a.jpg?X-Amz-Date=1&X-Amz-Signature=ab", True),
        ("https://h.example/a.jpg?sv=1&sig=ab", True),
        ("https://h.example/a.jpg?access_token=ab#x", True),
        ("https://h.example/a.jpg?size=640&crop=faces", False),
        ("https://h.example/a@b.jpg", False),
        ("abfs://container@account.dfs.core.windows.net/a.jpg", False),
        ("signature=1/token?sig=2.jpg", False),
    ],
)
def test_urls_with_a_secret_in_them_bring_a_warning(photos, mine_folder, tmp_path, uri, warned):
    mined = mine_folder(photos, tmp_path / "mined", Recipe(max_side=64))
    plan = pq.read_table(mined / "plan.parquet")
    uris = [uri, *plan.column("uri").to_pylist()[1:]]
    changed = plan.set_column(2, plan.schema.field("uri"), pa.array(uris))
    pq.write_table(changed, mined / "plan.parquet")
    manifest = read_manifest(mined)
    entry = FileEntry.of(mined, mined / "plan.parquet")
    write_model(mined / "dataset.json", manifest.model_copy(update={"plan": entry}))
    output = _convert(mined, tmp_path / "hub", "--to", "huggingface", "--license", "mit")
    said = f"warning: 1 of its images are at URLs with a password, signature or token in them, {uri} for one"
    assert (said in output) is warned
    assert ("warning" in output) is warned


@pytest.mark.parametrize(
    ("images", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (10**7, "10M<n<100M"), (2**28, "100M<n<1B")],
)
def test_the_card_has_a_size_that_the_hub_knows(mined_dataset, images, category):
    manifest = read_manifest(mined_dataset)
    large = manifest.model_copy(update={"totals": manifest.totals.model_copy(update={"images": images})})
    assert f'size_categories: ["{category}"]' in dataset_card(large, "x", "mit", ["jpg"])


@pytest.mark.parametrize("told", ["q83vASNFZ4k=", "sha256:" + "0" * 64, ["0" * 64], None])
def test_what_is_no_sha256_and_a_score_that_is_not_asked_for_stop_nothing(photos, tmp_path, told):
    images = [{"id": 1, "file_name": "cat.jpg", "sha256": told}]
    boxes = [{"image_id": 1, "bbox": [3, 3, 9, 9], "rank": 1, "score": "n/a"}]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes}))
    output = _convert(path, tmp_path / "out", "--to", "dataset", "--images", photos)
    assert "1 images, 1 boxes, 0 images rejected" in output
