"""Sets of a VOC folder by its lists: the images and boxes that a list names, and no others."""

import json
import shutil
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

from aligndet_train.finetuning.labels import Labels, matched, read_labels, shared_images
from proposals.cli import build_app
from proposals.errors import AlignDetError

CONFIG = Path(__file__).parents[2] / "configs" / "tiny_fcos.py"
# {xml: (its image, its class, the right edge of its box)}: names of images in another order than their xmls'.
SHOWN = {
    "a": ("flower.jpg", "flower", 61),
    "b": ("cat.jpg", "cat", 62),
    "c": ("coffee.jpg", "cup", 63),
    "d": ("astronaut.jpg", "cat", 64),
}


@pytest.fixture
def voc(photos: Path, tmp_path: Path) -> Path:
    """A VOC folder of SHOWN, with lists of train and val; renamed since: <filename> says another image's name."""
    folder = tmp_path / "VOC"
    for inner in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / inner).mkdir(parents=True)
    for stem, (name, shown, right) in SHOWN.items():
        height, width = cv2.imread(str(photos / name)).shape[:2]
        shutil.copy(photos / name, folder / "JPEGImages" / f"{stem}.jpg")
        (folder / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height></size>"
            f"<object><name>{shown}</name><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>{right}</xmax><ymax>70</ymax>"
            "</bndbox></object></annotation>"
        )
    listed(folder, "train", "d\nb\n")
    listed(folder, "val", "a\nc\n")
    return folder


def listed(folder: Path, name: str, text: str) -> Path:
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    path.write_text(text)
    return path


def shown(labels: Labels) -> dict[str, tuple[str, float]]:
    """{image: (class, right edge)}, as the written json has them."""
    content = json.loads(labels.annotations.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    classes = {category["id"]: category["name"] for category in content["categories"]}
    boxes = {
        names[box["image_id"]]: (classes[box["category_id"]], box["bbox"][0] + box["bbox"][2])
        for box in content["annotations"]
    }
    assert len(boxes) == len(content["annotations"]) == len(names)
    return boxes


def of(*stems: str) -> dict[str, tuple[str, float]]:
    return {f"{stem}.jpg": SHOWN[stem][1:] for stem in stems}


def test_a_list_is_its_images_and_the_folders_classes(voc, tmp_path):
    train = read_labels(voc / "ImageSets/Main/train.txt", None, tmp_path / "scratch")
    val = read_labels(voc / "ImageSets/Main/val.txt", None, tmp_path / "scratch")
    assert (shown(train), shown(val)) == (of("b", "d"), of("a", "c"))
    assert train.images == (voc / "JPEGImages").resolve()
    # "cup" and "flower" are not in train's boxes, but classes of the folder.
    assert train.classes == val.classes == ("cat", "cup", "flower")
    assert matched(val, train.classes, tmp_path) is val
    assert shared_images(train, val) == []
    whole = read_labels(voc, None, tmp_path / "scratch")
    assert shown(whole) == of("a", "b", "c", "d")
    assert shared_images(whole, val) == ["a.jpg", "c.jpg"]


@pytest.mark.parametrize("text", ["b  1\nd -1\n", "\ufeffb\r\n\r\nd\r\n", "d\nb\nd"])
def test_lists_as_people_have_them(text, voc, tmp_path):
    assert shown(read_labels(listed(voc, "cat_train", text), None, tmp_path / "scratch")) == of("b", "d")


def test_names_may_have_spaces(voc, tmp_path):
    for old, new in (("b", "my photo 1"), ("d", "my photo 2"), ("a", "my")):
        xml = voc / "Annotations" / f"{old}.xml"
        xml.rename(xml.with_stem(new))
        (voc / "JPEGImages" / f"{old}.jpg").rename(voc / "JPEGImages" / f"{new}.jpg")
    for lines in ("my photo 1\nmy photo 2\n", "my photo 1 -1\nmy photo 2  1\n"):
        path = listed(voc, "spaced", lines)
        assert shown(read_labels(path, None, tmp_path / "scratch")) == {
            "my photo 1.jpg": SHOWN["b"][1:],
            "my photo 2.jpg": SHOWN["d"][1:],
        }
    listed(voc, "spaced", "my photo 1\nmy photo 3\n")
    with pytest.raises(AlignDetError, match=r"1 of 2 images .* have no xml .*my photo 3 first"):
        read_labels(path, None, tmp_path)


def test_a_list_is_found_from_the_folder_it_is_in(voc, tmp_path, monkeypatch):
    monkeypatch.chdir(voc / "ImageSets" / "Main")
    assert shown(read_labels(Path("val.txt"), None, tmp_path / "scratch")) == of("a", "c")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"bad\.txt lists no image"),
        (" \n\n", r"bad\.txt lists no image"),
        (
            "b\nzebra\nb.jpg\n",
            r"2 of 3 images that .*bad\.txt lists have no xml in .*Annotations, zebra first",
        ),
        ("\udce9", r"bad\.txt is no list of images: it is not UTF-8"),
    ],
)
def test_a_list_that_fits_nothing_is_named_with_the_reason(text, sentence, voc, tmp_path):
    path = listed(voc, "bad", "")
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(AlignDetError, match=sentence):
        read_labels(path, None, tmp_path)


def test_a_list_elsewhere_or_nowhere_is_refused(voc, tmp_path):
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(AlignDetError, match=r"train\.txt .*no folder above it holds Annotations"):
        read_labels(tmp_path / "train.txt", None, tmp_path)
    with pytest.raises(AlignDetError, match=r"none\.txt cannot be read"):
        read_labels(voc / "ImageSets/Main/none.txt", None, tmp_path)


def test_a_missing_image_of_a_list_is_looked_for_among_the_images(voc, tmp_path):
    (voc / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(
        AlignDetError, match=r"1 of 2 images .*val\.txt are not in .*JPEGImages, a\.jpg first"
    ):
        read_labels(voc / "ImageSets/Main/val.txt", None, tmp_path)


def finetune(work_dir: Path, *arguments: object) -> str:
    small = ("--config", CONFIG, "--image-size", "64x48", "--workers", 0, "--epochs", 1, "--batch-size", 2)
    words = ("finetune", *small, "--work-dir", work_dir, *arguments)
    result = CliRunner().invoke(build_app(), list(map(str, words)))
    assert result.exit_code == 0, result.output
    (log,) = work_dir.glob("*/*.log")
    assert ("are in" in result.output) == (" - WARNING - " in log.read_text() and "too," in log.read_text())
    return result.output


def test_a_run_says_what_it_measures_on_and_leaves_out(voc, tmp_path):
    lists = voc / "ImageSets" / "Main"
    cv2.imwrite(str(voc / "JPEGImages" / "b.jpg"), cv2.imread(str(voc / "JPEGImages" / "b.jpg"))[:31])
    xml = voc / "Annotations" / "b.xml"
    xml.write_text(xml.read_text().replace("<height>", "<height>31</height><height>", 1).replace("70", "30"))
    said = finetune(tmp_path / "own", "--train", lists / "train.txt", "--val", lists / "val.txt")
    assert "training leaves out 1 of 2 images: 1 with a side below 32 px" in said
    assert "warning" not in said
    said = finetune(tmp_path / "shared", "--train", voc, "--val", lists / "val.txt")
    assert f"warning: 2 of 2 images of {lists / 'val.txt'} are in {voc} too, a.jpg first" in said
    assert "ImageSets/Main" in said
