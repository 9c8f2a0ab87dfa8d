"""`benchmarks/transfer.py pictures`: the pictures of docs/results.md, out of COCO's val2017 and Pascal VOC 2012."""

import argparse
import json
import sys
from pathlib import Path

from aligndet_train.finetuning.labels import coco_form
from proposals.ground_truth import GroundTruth, read_ground_truth

LISTS = Path(__file__).parents[1] / "docs" / "results" / "pictures"


def pictures(args: argparse.Namespace) -> None:
    """OUT/pool with links to the unlabelled photographs, OUT/train.json and OUT/val.json with VOC's boxes.

    OUT/labels.json has those of both, for `image_domain.py pack`. Boxes marked difficult count as any other. Ends the
    process, naming the first picture that is missing.
    """
    link_pool(args.coco, args.out / "pool")
    truth = read_ground_truth(args.voc)
    halves = {name: listed(name) for name in ("train", "val")}
    for name, names in {**halves, "labels": halves["train"] + halves["val"]}.items():
        (args.out / f"{name}.json").write_text(json.dumps(part_of(truth, names, args.voc)))
    print(
        f"next: python benchmarks/transfer.py pack {args.out / 'pool'} --train {args.out / 'train.json'} "
        f"--val {args.out / 'val.json'} --images {args.voc / 'JPEGImages'} --out PACK"
    )


def listed(name: str) -> list[str]:
    """The file names of pool, train or val."""
    return (LISTS / f"{name}.txt").read_text().split()


def link_pool(coco: Path, pool: Path) -> None:
    """A link in ``pool`` to each listed photograph of ``coco``."""
    pool.mkdir(parents=True, exist_ok=True)
    for name in listed("pool"):
        source, link = coco.resolve() / name, pool / name
        if not source.is_file():
            sys.exit(f"{source} is missing: --coco is the folder of val2017's pictures")
        link.unlink(missing_ok=True)
        link.symlink_to(source)


def part_of(truth: GroundTruth, names: list[str], source: Path) -> dict[str, list[dict[str, object]]]:
    """The COCO form of ``names`` alone."""
    content = coco_form(truth, truth.classes, source)
    wanted = set(names)
    images = [image for image in content["images"] if image["file_name"] in wanted]
    if missing := sorted(wanted - {str(image["file_name"]) for image in images}):
        sys.exit(
            f"{source} has no annotation of {missing[0]}: --voc is the folder VOC2012 of the trainval archive"
        )
    numbers = {image["id"] for image in images}
    boxes = [box for box in content["annotations"] if box["image_id"] in numbers]
    for box in boxes:  # difficult ones count as any other
        box.pop("ignore", None)
    return {**content, "images": images, "annotations": boxes}
