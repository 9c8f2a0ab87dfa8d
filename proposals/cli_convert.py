"""The verb `convert`, light to import."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proposals.errors import AlignDetError
from proposals.terminal import harmless

if TYPE_CHECKING:
    from proposals.convert import Source
    from proposals.convert.stream import ImageIds


class Form(StrEnum):
    """Forms of proposals, as the command line spells them."""

    dataset = "dataset"
    coco = "coco"
    soco = "soco"
    detectron2 = "detectron2"
    mmdet = "mmdet"
    huggingface = "huggingface"


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A dataset folder, or a file of another form.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write; a new folder for dataset and huggingface.")
    ],
    to: Annotated[Form, typer.Option(help="Form to write.")],
    from_form: Annotated[
        Form | None,
        typer.Option("--from", help="Form to read. Default: dataset for a folder, coco for a file."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images: they become part of a dataset.")
    ] = None,
    filter_name: Annotated[
        str, typer.Option("--filter", help="For a dataset: the filter that made these boxes, if you know it.")
    ] = "none",
    ids: Annotated[
        Path | None,
        typer.Option(
            help="A COCO json that tells which image id is which file name. Default: ids 1, 2, 3 ..."
        ),
    ] = None,
    folder: Annotated[
        str | None, typer.Option(help="For mmdet: name of the images' folder, such as train2017.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="For huggingface: the dataset's name.")] = None,
    license_id: Annotated[
        str, typer.Option("--license", help="For huggingface: licence of the boxes, such as cc-by-4.0.")
    ] = "unknown",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read detectron2 and mmdet files, which are pickles.")
    ] = False,
) -> None:
    """Convert proposals to and from the forms that other tools use.

    coco: AlignDet's json, one class selective_search. soco: SoCo's json. detectron2, mmdet: their proposal files,
    which are pickles: never read without --allow-pickle, and then numpy arrays only. huggingface: a folder to upload,
    with dataset card and Croissant metadata. Writing streams: a million images take no more memory than a thousand,
    but for the names.

    Example: `aligndet convert mined/ ratio3size0008@0.5.json --to coco`
    """
    from proposals.outputs import require_outside_datasets
    from proposals.paths import local_only

    source = local_only(source, "convert")
    require_outside_datasets(out)
    _require_another_file(out, source, ids)
    form = from_form or (Form.dataset if source.is_dir() else Form.coco)
    if to is Form.huggingface:
        _to_hub(source, form, out, name, license_id)
    elif to is Form.dataset:
        folder_of_images = _require(images)
        _to_dataset(_open(source, form, ids, allow_pickle), form, out, folder_of_images, filter_name)
    else:
        if out.is_dir():
            raise AlignDetError(
                f"{out} is a folder, and {to.value} is one file. Name a file, as {out / 'boxes.json'}."
            )
        opened = _open(source, form, ids, allow_pickle)
        try:
            boxes = _write(opened, to, out, _ids(ids), folder)
        except OSError as error:
            raise AlignDetError(f"{out} cannot be written: {error.strerror}. Choose another name.") from error
        typer.echo(f"{boxes:,} boxes, {out.stat().st_size / 1e6:.1f} MB: {out}")


def _require_another_file(out: Path, *read: Path | None) -> None:
    for path in read:
        if path is not None and path.exists() and out.exists() and out.samefile(path):
            raise AlignDetError(f"{out} is what is read, and would be written over. Choose another OUT.")


def _open(path: Path, form: Form, ids: Path | None, allow_pickle: bool) -> "Source":
    from proposals.convert import DatasetSource
    from proposals.convert.coco import CocoSource, read_image_ids
    from proposals.convert.pickles import PickleSource
    from proposals.convert.soco import SocoSource
    from proposals.dataset import open_dataset

    if form in (Form.dataset, Form.huggingface):
        return DatasetSource(open_dataset(path))
    if form in (Form.detectron2, Form.mmdet):
        if not allow_pickle:
            raise AlignDetError(
                f"{path} is a pickle, and a pickle can run any program while it is read. If you trust where it comes "
                "from, add --allow-pickle: even then nothing but numpy arrays is accepted."
            )
        names = {} if ids is None else {str(number): name for name, number in read_image_ids(ids).items()}
        return PickleSource(path, names)
    return CocoSource(path) if form is Form.coco else SocoSource(path)


def _write(source: "Source", to: Form, out: Path, ids: "ImageIds", folder: str | None) -> int:
    from proposals.convert.coco import write_coco
    from proposals.convert.pickles import write_detectron2, write_mmdet
    from proposals.convert.soco import write_soco

    if to is Form.coco:
        return write_coco(source, out, ids)
    if to is Form.soco:
        return write_soco(source, out)
    return write_detectron2(source, out, ids) if to is Form.detectron2 else write_mmdet(source, out, folder)


def _ids(path: Path | None) -> "ImageIds":
    from pathlib import PurePosixPath

    from proposals.convert.coco import read_image_ids
    from proposals.convert.stream import numbered

    if path is None:
        return numbered
    known, owners = read_image_ids(path), dict[int, str]()

    def find(_place: int, uri: str) -> int:
        number = known.get(uri, known.get(PurePosixPath(uri).name))
        if number is None:
            raise AlignDetError(f"{path} has no id for {uri}. Name the annotations of these images.")
        if owners.setdefault(number, uri) != uri:
            raise AlignDetError(
                f"{path} has one id, {number}, for two images: {owners[number]} and {uri}. Name annotations that tell "
                "their file names apart, folders included."
            )
        return number

    return find


def _to_hub(source: Path, form: Form, out: Path, name: str | None, license_id: str) -> None:
    from proposals.convert.hub import write_hub_folder
    from proposals.dataset import open_dataset

    if form is not Form.dataset:
        raise AlignDetError(
            f"huggingface is written from a dataset. First: aligndet convert {source} DATASET --to dataset"
        )
    opened = open_dataset(source)
    made = write_hub_folder(opened, out, name or opened.root.resolve().name, license_id)
    typer.echo(f"{len(opened):,} images in {made.files:,} files: {out}")
    if made.private.count:
        typer.echo(
            f"warning: {made.private.count:,} of its images are named by their path on the machine that mined them, "
            f"{harmless(made.private.example)} for one, and whoever downloads this can read that. To publish other "
            "names, mine a folder, or a list of paths that are relative to it",
            err=True,
        )
    if made.secret.count:
        typer.echo(
            f"warning: {made.secret.count:,} of its images are at URLs with a password, signature or token in them, "
            f"{harmless(made.secret.example)} for one, and whoever downloads this can use it. Withdraw it, or mine "
            "from URLs without",
            err=True,
        )


def _require(images: Path | None) -> Path:
    if images is None:
        raise AlignDetError("a dataset holds the images too. Name their folder: --images FOLDER")
    return images


def _to_dataset(source: "Source", form: Form, out: Path, images: Path, filter_name: str) -> None:
    from proposals.convert.ingest import Import, write_dataset
    from proposals.recipe import Recipe

    lost = Counter[str]()
    manifest = write_dataset(Import(source, form.value, images, Recipe(filter=filter_name)), out, lost)
    totals = manifest.totals
    typer.echo(
        f"{totals.images:,} images, {totals.proposals:,} boxes, {totals.rejected:,} images rejected: {out}"
    )
    if told := ", ".join(f"{count:,} {what}" for what, count in lost.items() if count):
        typer.echo(f"not taken over as they were: {told}", err=True)
