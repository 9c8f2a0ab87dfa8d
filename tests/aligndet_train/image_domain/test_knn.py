"""k-NN accuracy against a plain loop, and the two kinds of labelled sets."""

import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from aligndet_train.image_domain.knn import knn_figures, read_labelled
from proposals.errors import AlignDetError
from tests.aligndet_train.image_domain.conftest import small_simsiam
from tests.aligndet_train.ranks import said_by_ranks


def literal(features, labels, groups, k):
    right = 0
    unit = [row / np.linalg.norm(row) for row in features]
    for i, row in enumerate(unit):
        others = [(float(row @ unit[j]), labels[j]) for j in range(len(unit)) if groups[j] != groups[i]]
        votes: dict[int, float] = {}
        for similarity, label in sorted(others, reverse=True)[:k]:
            votes[label] = votes.get(label, 0) + math.exp(similarity / 0.07)
        right += bool(votes) and max(votes, key=votes.get) == labels[i]
    return right / len(unit)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_it_is_the_weighted_vote_of_the_nearest_of_other_groups(k):
    rng = np.random.default_rng(k)
    labels, groups = rng.integers(0, 4, 60), rng.integers(0, 25, 60)
    features = rng.normal(size=(60, 8)) + 0.8 * rng.normal(size=(4, 8))[labels]
    tensors = (torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(groups))
    assert knn_figures(*tensors, k=k).accuracy == pytest.approx(literal(features, labels, groups, k))


def test_pieces_of_one_image_do_not_vote_for_each_other():
    features = torch.eye(2).repeat_interleave(3, dim=0)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert knn_figures(features, labels, torch.arange(6)).accuracy == 1
    assert knn_figures(features, labels, torch.tensor([0, 0, 0, 1, 1, 1])).accuracy == 0
    assert knn_figures(features, labels, torch.zeros(6, dtype=torch.long)).accuracy == 0


def test_chance_is_what_features_that_tell_nothing_reach():
    rng = np.random.default_rng(3)
    labels = torch.from_numpy(rng.choice(20, 900, p=[0.24] + [0.04] * 19))
    noise = torch.from_numpy(rng.normal(size=(900, 16)))
    alone = torch.arange(900)
    chance = knn_figures(noise, labels, alone).chance
    assert knn_figures(noise, labels, alone).accuracy == pytest.approx(chance, abs=0.03)
    assert 0.1 < chance < 0.24
    telling = noise + 20 * torch.nn.functional.one_hot(labels, 20)[:, :16]
    assert knn_figures(telling, labels, alone).accuracy > 0.8
    assert knn_figures(telling, labels, alone).chance < 0.3


@pytest.fixture
def colours(tmp_path):
    """A folder of red and of blue noise, in class folders; and a COCO json of boxes in pictures that hold both."""
    rng = np.random.default_rng(0)
    for name, channel in (("red", 2), ("blue", 0)):
        (tmp_path / "folders" / name).mkdir(parents=True)
        for number in range(6):
            picture = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            picture[..., channel] += 150
            cv2.imwrite(str(tmp_path / "folders" / name / f"{number}.png"), picture)
    (tmp_path / "coco" / "images").mkdir(parents=True)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 5, "name": "red"}, {"id": 9, "name": "blue"}],
    }
    for image in range(4):
        both = [cv2.imread(str(tmp_path / "folders" / name / f"{image}.png")) for name in ("red", "blue")]
        cv2.imwrite(str(tmp_path / "coco" / "images" / f"{image}.png"), np.hstack(both))
        content["images"].append({"id": image, "file_name": f"{image}.png", "width": 80, "height": 40})
        for side, category in enumerate((5, 9)):
            box = {"bbox": [40 * side, 0, 40, 40], "category_id": category, "image_id": image}
            content["annotations"].append({"id": len(content["annotations"]), **box})
    (tmp_path / "coco" / "set.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(("source", "pieces"), [("folders", 12), ("coco/set.json", 8)])
def test_colours_are_told_apart_by_a_random_network(colours, source, pieces):
    labelled = read_labelled(colours / source, None, 24)
    model, _ = small_simsiam()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = labelled.features(model)
    assert (len(labelled), sorted(labelled.classes)) == (pieces, ["blue", "red"])
    assert knn_figures(features, labelled.labels, labelled.groups, k=3).accuracy == 1
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def labels_of(colours, change) -> tuple[Path, dict]:
    """The COCO json after ``change``."""
    path = colours / "coco" / "set.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path, content


ODD = {
    "image 77": lambda content: content["annotations"][3].update(image_id=77),
    "category 77": lambda content: content["annotations"][3].update(category_id=77),
    "annotation 3 has no box": lambda content: content["annotations"][3].pop("bbox"),
    "annotation 3 has no": lambda content: content["annotations"][3].update(bbox=[]),
    "annotation 3 has": lambda content: content["annotations"][3].update(bbox=[1, 2]),
    "float": lambda content: content["annotations"][3].update(bbox=["a", 0, 40, 40]),
    "cannot convert float": lambda content: content["annotations"][3].update(bbox=[0, 0, float("inf"), 40]),
    "TypeError": lambda content: content["images"][1].update(file_name=5),
}


@pytest.mark.parametrize("message", ODD)
def test_odd_labels_are_named(message, colours):
    path, _ = labels_of(colours, ODD[message])
    with pytest.raises(AlignDetError, match=f"set.json is not a COCO json of boxes: .*{message}"):
        read_labelled(path, None, 24)


def test_image_ids_may_be_words(colours):
    def words(content):
        for entry in content["images"]:
            entry["id"] = f"image {entry['id']}"
        for entry in content["annotations"]:
            entry["image_id"] = f"image {entry['image_id']}"

    labelled = read_labelled(labels_of(colours, words)[0], None, 24)
    assert labelled.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("sized", [True, False])
def test_boxes_are_cut_at_the_images_edges_and_left_out_when_little_is_there(sized, colours):
    boxes = [[-40, 0, 20, 40], [200, 0, 20, 40], [76, 0, 40, 40], [-20, -20, 40, 40], [60, 10, 40, 80]]

    def odd(content):
        for annotation, box in zip(content["annotations"], boxes, strict=False):
            annotation["bbox"] = box
        for entry in content["images"]:
            if not sized:
                del entry["width"], entry["height"]

    labelled = read_labelled(labels_of(colours, odd)[0], None, 24)
    if sized:
        assert [piece.box for piece in labelled.pieces[:2]] == [(0, 0, 20, 20), (60, 10, 80, 40)]
        assert len(labelled) == 5
        labelled.features(small_simsiam()[0])
    else:
        with pytest.raises(
            AlignDetError, match=r"a box of .*png, \(200, 0, 220, 40\), lies beyond its 80 x 40 px"
        ):
            labelled.features(small_simsiam()[0])


def test_a_class_none_of_whose_boxes_is_large_enough_is_none(colours):
    def small(content):
        for annotation in content["annotations"][1::2]:
            annotation["bbox"] = [0, 0, 5, 5]

    with pytest.raises(AlignDetError, match="has 4 pictures of 1 classes"):
        read_labelled(labels_of(colours, small)[0], None, 24)


def test_class_folders_hold_what_mining_takes_and_what_is_left_out_is_said(colours, capsys):
    folder = colours / "folders"
    picture = cv2.imread(str(folder / "red" / "0.png"))
    (folder / "scans").mkdir()
    cv2.imwrite(str(folder / "scans" / "a.tif"), picture)
    (folder / "empty").mkdir()
    cv2.imwrite(str(folder / "loose.png"), picture)
    labelled = read_labelled(folder, None, 24)
    assert labelled.classes == ("blue", "red", "scans")
    assert labelled.summary == "13 pictures of 3 classes"
    assert f"2 left out, first {folder / 'empty'} has none" in capsys.readouterr().out


def test_parts_of_a_set_are_not_taken_for_classes(colours):
    shutil.copytree(colours / "folders", colours / "set" / "train")
    shutil.copytree(colours / "folders", colours / "set" / "val")
    with pytest.raises(AlignDetError, match=r"train and val in .* give .*/val"):
        read_labelled(colours / "set", None, 24)


def test_equal_pictures_and_boxes_have_one_fingerprint(colours):
    first, again = (read_labelled(colours / "coco" / "set.json", None, 24) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != read_labelled(colours / "coco" / "set.json", None, 32).fingerprint
    assert first.fingerprint != read_labelled(colours / "folders", None, 24).fingerprint


def test_what_cannot_be_measured_says_why(colours, tmp_path):
    with pytest.raises(AlignDetError, match="no labelled pictures at"):
        read_labelled(tmp_path / "gone", None, 24)
    with pytest.raises(AlignDetError, match=r"8 images of .* --knn-images"):
        read_labelled(colours / "coco" / "set.json", colours / "folders", 24)
    (colours / "text.json").write_text("hello")
    with pytest.raises(AlignDetError, match="is not a COCO json of boxes"):
        read_labelled(colours / "text.json", None, 24)
    (colours / "folders" / "red" / "bad.png").write_bytes(b"nothing")
    model, _ = small_simsiam()
    with pytest.raises(AlignDetError, match=r"bad\.png cannot be read"):
        read_labelled(colours / "folders", None, 24).features(model)


def features_on_a_rank(rank: int, given: tuple[Path, Path]) -> None:
    """Each rank has seen batches of its own, as on CPUs."""
    source, out = given
    model, _ = small_simsiam()
    statistics = [value for name, value in model.named_buffers() if name.endswith("running_mean")]
    for mean in statistics:
        mean += rank
    torch.save(read_labelled(source, None, 24).features(model), out / f"{rank}.pth")
    assert all(torch.equal(mean, torch.full_like(mean, rank)) for mean in statistics)


def test_ranks_share_the_pictures_and_all_have_the_features_of_rank_0(colours, tmp_path):
    """Four pictures: of three ranks two have two each, and one has none of its own."""
    ranks = 3
    source, content = labels_of(
        colours, lambda content: content.update(annotations=content["annotations"][:4])
    )
    assert len(content["annotations"]) == 4
    whole = read_labelled(source, None, 24).features(small_simsiam()[0])
    said_by_ranks(features_on_a_rank, [(source, tmp_path)] * ranks, tmp_path)
    for rank in range(ranks):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert torch.allclose(found, whole, atol=1e-5)
