"""A dataset as a Hugging Face repository: its own files, a dataset card (README.md) and Croissant metadata."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from proposals.convert.new_folder import CARD, CROISSANT, new_dataset_folder
from proposals.dataset import ProposalDataset, layout
from proposals.dataset.clusters import read_sound_record
from proposals.dataset.manifest import Manifest, refuse_newer
from proposals.errors import AlignDetError
from proposals.paths import scheme_of

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
_COLUMNS = {
    "key": ("sc:Text", "Unique key of the image: the stem of its two tar members."),
    "uri": ("sc:Text", "The image's name in the source."),
    "sha256": ("sc:Text", "Of the image file, hex."),
    "width": ("sc:Integer", "Width of the upright image, px."),
    "height": ("sc:Integer", "Height of the upright image, px."),
    "status": ("sc:Text", "ok, or the fallback rule that gave the boxes."),
}

_MINED = """The boxes
come from selective search: no label and no model was used. They are meant as pseudo ground truth for pretraining
detectors, and cover what looks like a thing at any scale, so most of them are no annotated object."""
_IMPORTED = """The boxes
were imported from another program's file, not mined: what made them, labels or a model perhaps, is not known here."""


def write_hub_folder(dataset: ProposalDataset, out: Path, name: str, license_id: str) -> int:
    """Write the repository folder ``out``: the dataset (hard links, copies across filesystems), card and metadata.

    It stays a dataset that `open_dataset` reads, cluster ids included; features of regions stay behind. Returns how
    many files there are. Raises AlignDetError when its images are in a folder of this machine, ``out`` is not an empty
    folder or cannot be written, or a file of the dataset is missing or of a newer format, or its cluster ids are
    damaged; ``out`` is empty again then.
    """
    manifest = dataset.manifest
    if manifest.images is not None and scheme_of(manifest.images.root) is None:
        raise AlignDetError(
            f"{dataset.root} holds no images: it names the folder where they are, {manifest.images.root}, and a "
            "repository would publish that name and not the images. Mine them again without `--images reference`"
        )
    refuse_newer(dataset.root / layout.MANIFEST, manifest.format_version, "a repository")
    paths = [manifest.plan.path, manifest.rejected.path]
    paths += [entry.path for shard in manifest.shards for entry in shard.files]
    paths += [entry.path for entry in manifest.consolidated]
    records = [layout.record_path(dataset.root, shard.name) for shard in manifest.shards]
    paths += [record.relative_to(dataset.root).as_posix() for record in records if record.is_file()]
    paths += _cluster_files(dataset)
    croissant = json.dumps(_croissant(manifest, name, license_id), indent=1, ensure_ascii=False)
    with new_dataset_folder(out):
        (out / CARD).write_text(_card(manifest, name, license_id), encoding="utf-8")
        (out / CROISSANT).write_text(croissant + "\n", encoding="utf-8")
        for path in (*paths, layout.MANIFEST):
            _link(dataset.root / path, out / path)
    return len(paths) + 3


def _cluster_files(dataset: ProposalDataset) -> list[str]:
    record = read_sound_record(dataset.root, dataset.manifest, content=False)
    if record is None:
        return []
    return [layout.CLUSTERS_RECORD, *(entry.path for entry in record.files)]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise AlignDetError(f"{source} is missing: the dataset is damaged. See `aligndet verify`.") from error
    except OSError:
        shutil.copyfile(source, target)


# One kind of file only under configs: a repository has a single builder in `datasets`.
def _card(manifest: Manifest, name: str, license_id: str) -> str:
    totals, recipe = manifest.totals, manifest.recipe
    size = next((label for limit, label in _SIZES if totals.images < limit), "n>10M")
    rules = "".join(f"| {key} | `{value}` |\n" for key, value in recipe.model_dump().items())
    imported = manifest.source.imported
    makers = _IMPORTED if imported else _MINED
    table = "" if imported else f"| recipe | |\n|---|---|\n{rules}\n"
    tags = "" if imported else "selective-search, "
    return f"""---
pretty_name: {json.dumps(name, ensure_ascii=False)}
license: {json.dumps(license_id)}
task_categories: [object-detection]
tags: [object-proposals, {tags}self-supervised, aligndet, webdataset]
size_categories: [{json.dumps(size)}]
configs:
- config_name: boxes
  default: true
  data_files: shards/*.parquet
---

# {_plain(name)}

{totals.proposals:,} class-agnostic boxes on {totals.images:,} images, in {len(manifest.shards):,} shards. {makers}

- `shards/*.parquet`, which `load_dataset` gives: one row an image. `boxes` are x1, y1, x2, y2 in pixels of the
  upright image (EXIF orientation applied), half-open (width = x2 - x1), best first; `rank` is ascending.
{_images(manifest)}
- {totals.rejected:,} images gave no row; `rejected.parquet` says why.

{table}Fingerprint of the recipe: `{manifest.recipe_fingerprint}`.
Source: {_plain(manifest.source.kind)}, {manifest.source.images:,} images.
Format: `{manifest.format}` {manifest.format_version}.

The licence above is the one stated for the boxes; each image keeps its own.
"""


def _images(manifest: Manifest) -> str:
    if manifest.images is not None:
        return "- The images are not part of it: `uri` names each, `sha256` proves it."
    return """- `shards/*.tar`: plain WebDataset shards, `<key>.<extension>` and `<key>.json`; images are unchanged.
  `load_dataset("webdataset", data_files="shards/*.tar")` reads them."""


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() or c in " ._-" else "_" for c in text)


def _croissant(manifest: Manifest, name: str, license_id: str) -> dict[str, Any]:
    files = [entry for shard in manifest.shards for entry in shard.files]
    objects = [
        {
            "@type": "cr:FileObject",
            "@id": entry.path,
            "name": entry.path,
            "contentUrl": entry.path,
            "contentSize": f"{entry.bytes} B",
            "sha256": entry.sha256,
            "encodingFormat": "application/x-parquet"
            if entry.path.endswith("parquet")
            else "application/x-tar",
        }
        for entry in files
    ]
    group = {
        "@type": "cr:FileSet",
        "@id": "tables",
        "name": "tables",
        "encodingFormat": "application/x-parquet",
        "includes": "shards/*.parquet",
    }
    made = "imported" if manifest.source.imported else "selective-search"
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"{manifest.totals.proposals} {made} boxes on {manifest.totals.images} images.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": license_id,
        "version": "1.0.0",
        "distribution": [*objects, group],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "images", "name": "images", "field": _fields()},
        ],
    }


def _fields() -> list[dict[str, Any]]:
    plain = [_field(name, kind, text) for name, (kind, text) in _COLUMNS.items()]
    boxes = _field("boxes", "sc:Float", "x1, y1, x2, y2 px, best first.") | {"repeated": True}
    rank = _field("rank", "sc:Float", "One for each box, ascending.") | {"repeated": True}
    return [*plain, boxes, rank]


def _field(name: str, kind: str, text: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"images/{name}",
        "name": name,
        "description": text,
        "dataType": kind,
        "source": {"fileSet": {"@id": "tables"}, "extract": {"column": name}},
    }


# Croissant 1.0 asks for its whole context, used or not.
_TERMS = (
    "citeAs column equivalentProperty extract field fileObject fileProperty fileSet format includes isLiveDataset "
    "jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source "
    "subField transform"
)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
}
