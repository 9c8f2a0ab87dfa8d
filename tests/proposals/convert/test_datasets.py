"""Whole datasets through the verb: out and back, the Hugging Face folder, memory."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from proposals.cli import build_app
from proposals.dataset import open_dataset
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError


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
