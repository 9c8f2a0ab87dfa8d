"""`benchmarks/transfer.py pack`: all that the machine which trains needs, shrunk, mined and split, in one folder."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pictures import require_apart, shrink
from transfer_jobs import LONG_SIDE, aligndet

from aligndet_train.finetuning.labels import Labels, read_labels
from proposals.errors import AlignDetError
from proposals.images import has_image_suffix


def pack(args: argparse.Namespace) -> None:
    """Shrink, mine, split. Ends the process, naming the picture or the labels, where they cannot be read."""
    require_apart(args.out, (args.pool, args.train, args.val))
    pool = args.out / "pool"
    print(f"{args.pool}: {pack_pool(args.pool, pool, args.quality)} photographs")
    try:
        packed = pack_labelled(args.train, args.images, args.out, "train", args.quality)
        if args.val is None:
            halve(args.out)
        else:
            pack_labelled(args.val, args.images, args.out, "val", args.quality, packed)
    except AlignDetError as error:
        sys.exit(str(error))
    percents = [part for percent in args.percent for part in ("--percent", percent)]
    subprocess.run(
        aligndet("split", args.out / "train.json", args.out, *percents, "--seeds", args.seeds), check=True
    )
    hold_out(args.out)
    subprocess.run(aligndet("mine", pool, args.out / "mined"), check=True)
    if args.clusters:
        cluster(args.out / "mined", args.clusters)
    if args.ablate:
        filtered = ("--filter", "ratio3size0308@0.5")
        subprocess.run(aligndet("mine", pool, args.out / "mined_0308", *filtered), check=True)
        randomise(args.out / "mined", pool, args.out / "mined_random")
    shutil.rmtree(pool)  # every picture is in the datasets' tars
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def pack_pool(photographs: Path, pool: Path, quality: int) -> int:
    """Shrink every picture below ``photographs`` into ``pool``, under its own path; returns how many."""
    found = sorted(path for path in photographs.rglob("*") if has_image_suffix(path.name))
    for source in found:
        shrink(source, pool / f"{source.relative_to(photographs)}.jpg", LONG_SIDE, quality)
    return len(found)


def pack_labelled(
    labels: Path,
    images: Path | None,
    out: Path,
    name: str,
    quality: int,
    packed: dict[Path, Path] | None = None,
) -> dict[Path, Path]:
    """The labelled pictures, shrunk, and OUT/NAME.json, whose boxes fit them; returns {copy: its original}.

    labels: a COCO json, a VOC folder or one of its lists. packed: what the half before returned. Raises AlignDetError
    for what `aligndet finetune` refuses, for a copy that would lie outside of OUT, and for one that two pictures want.
    """
    with TemporaryDirectory() as scratch:
        found = read_labels(labels, images, Path(scratch))
        content = json.loads(found.annotations.read_bytes())
    factors, made = {}, dict(packed or {})
    for image in content["images"]:
        source, copy = places(image["file_name"], found, out / "labelled")
        if made.setdefault(copy, source) != source:
            raise AlignDetError(
                f"{source} and {made[copy]} are both named {image['file_name']}: put both folders into one, give that "
                "as --images, and name pictures by their paths below it"
            )
        factor = shrink(source, copy, LONG_SIDE, quality)
        factors[image["id"]] = factor
        image["width"], image["height"] = (round(image[side] * factor) for side in ("width", "height"))
    # Where images were taken out by hand, their boxes may be left.
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] in factors]
    for box in content["annotations"]:
        factor = factors[box["image_id"]]
        box["area"] *= factor**2
        box["bbox"] = [value * factor for value in box["bbox"]]
    (out / f"{name}.json").write_text(json.dumps(content))
    return made


def places(name: str, labels: Labels, copies: Path) -> tuple[Path, Path]:
    """Where a picture of ``labels`` is, and where its copy goes. Raises AlignDetError when that is outside."""
    source, copy = (labels.images / name).resolve(), (copies / name).resolve()
    if copy == source or not copy.is_relative_to(copies.resolve()):
        raise AlignDetError(f"{labels.source}: name {source} by its path below --images, not {name}")
    return source, copy


def cluster(mined: Path, count: int) -> None:
    """Give every box a cluster, the classes of DETR's pretraining; its features, five times the pictures, go."""
    subprocess.run(aligndet("regions", mined, "--backbone", "fcos_lite0"), check=True)
    subprocess.run(aligndet("cluster", mined, "--k", count), check=True)
    shutil.rmtree(mined / "regions.zarr")


def hold_out(folder: Path) -> None:
    """A fifth of the training pictures, on which learning rates are chosen and nothing is reported."""
    part_in_two(folder, ("tune_train", "tune_val"), slice(0, None, 5))


def halve(folder: Path) -> None:
    """Every second labelled picture is to measure on."""
    trained, measured = part_in_two(folder, ("train", "val"), slice(1, None, 2))
    print(f"no --val: of the pictures of --train {trained} are to train on, {measured} to measure on")


def part_in_two(folder: Path, names: tuple[str, str], chosen: slice) -> tuple[int, int]:
    """The pictures of FOLDER/train.json: ``chosen`` ones go to the second of ``names``, the others to the first.

    Returns how many each has.
    """
    content = json.loads((folder / "train.json").read_text())
    second = {image["id"] for image in content["images"][chosen]}
    for name, inside in zip(names, (False, True), strict=True):
        part = {
            **content,
            "images": [image for image in content["images"] if (image["id"] in second) is inside],
            "annotations": [box for box in content["annotations"] if (box["image_id"] in second) is inside],
        }
        (folder / f"{name}.json").write_text(json.dumps(part))
    return len(content["images"]) - len(second), len(second)


def randomise(mined: Path, pool: Path, out: Path) -> None:
    """The same pictures with as many boxes of the same sizes, put anywhere: what selective search has to beat."""
    import numpy as np

    listed = out.with_suffix(".json")
    subprocess.run(aligndet("convert", mined, listed, "--to", "coco"), check=True)
    content, rng = json.loads(listed.read_text()), np.random.default_rng(0)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for box in content["annotations"]:
        (width, height), (_, _, w, h) = sizes[box["image_id"]], box["bbox"]
        box["bbox"] = [float(rng.uniform(0, width - w)), float(rng.uniform(0, height - h)), w, h]
    listed.write_text(json.dumps(content))
    subprocess.run(aligndet("convert", listed, out, "--to", "dataset", "--images", pool), check=True)
    listed.unlink()
