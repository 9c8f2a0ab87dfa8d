"""A dataset as a Hugging Face repository: its own files, a dataset card (README.md) and Croissant metadata."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import parse_qsl

from proposals.convert.new_folder import CARD, CROISSANT, new_dataset_folder
from proposals.dataset import ProposalDataset, layout
from proposals.dataset.assemble import plan_groups
from proposals.dataset.checks.folder import file_faults
from proposals.dataset.clusters import read_sound_record
from proposals.dataset.manifest import Manifest, committed_record, refuse_newer
from proposals.errors import AlignDetError
from proposals.paths import scheme_of
from proposals.rows import iterate_rows

# The Hub's, as far as the format goes: 2^28 images.
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
# Azure's containers stand where others have a user, so there only a password tells.
_USER = re.compile(r"(?:https?://[^/?#]*|[a-z0-9+.-]+://[^/?#]*:[^/?#]*)@", re.IGNORECASE)
# Names in a query whose value lets in whoever has it: signed URLs of S3, Google, Azure and CDNs, keys of services.
_SECRET = re.compile(
    r"signature|token|secret|passw|credential|api_?key|access_?key|^(?:sig|auth|key|key-pair-id|googleaccessid)$",
    re.IGNORECASE,
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


@dataclass(frozen=True)
class Published:
    """files: how many the folder has.

    private, secret: of the images' names, those that are paths of the machine that mined, and those that are URLs with
    a password, signature or token in them.
    """

    files: int
    private: "Told"
    secret: "Told"


@dataclass(frozen=True)
class Told:
    """Names that tell too much: how many, and one of them."""

    count: int = 0
    example: str = ""

    def with_names(self, names: list[str]) -> "Told":
        """Those and ``names``."""
        return Told(self.count + len(names), self.example or next(iter(names), ""))


def write_hub_folder(dataset: ProposalDataset, out: Path, name: str, license_id: str) -> Published:
    """Write the repository folder ``out``: the dataset (hard links, copies across filesystems), card and metadata.

    It stays a dataset that `open_dataset` reads, cluster ids included; features of regions stay behind. Raises
    AlignDetError when its images are in a folder of this machine, ``out`` is not an empty folder or cannot be written,
    or a file of the dataset is missing, of another size or of a newer format, a table or its cluster ids are damaged;
    ``out`` is empty again then.
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
    paths += _whole_records(dataset) + _cluster_files(dataset)
    kinds = {layout.image_extension(uri) for rows in iterate_rows(dataset) for uri in rows.uris}
    private, secret = Told(), Told()
    # Of all images, the rejected ones among them: their names are published, too.
    for group in plan_groups(dataset.root / layout.PLAN):
        uris = group.column("uri").to_pylist()
        private = private.with_names([uri for uri in uris if _is_private(uri)])
        secret = secret.with_names([uri for uri in uris if _has_secret(uri)])
    if manifest.images is not None and _has_secret(manifest.images.root):
        secret = Told(manifest.totals.images, manifest.images.root)
    croissant = json.dumps(_croissant(manifest, name, license_id), indent=1, ensure_ascii=False)
    with new_dataset_folder(out):
        (out / CARD).write_text(dataset_card(manifest, name, license_id, sorted(kinds)), encoding="utf-8")
        (out / CROISSANT).write_text(croissant + "\n", encoding="utf-8")
        for path in (*paths, layout.MANIFEST):
            _link(dataset.root / path, out / path)
    return Published(len(paths) + 3, private, secret)


def _whole_records(dataset: ProposalDataset) -> list[str]:
    """Paths of the commit records; raises AlignDetError when one, or a file that the manifest lists, is not whole."""
    root, manifest = dataset.root, dataset.manifest
    shards = [entry for shard in manifest.shards for entry in shard.files]
    for entry in (manifest.plan, manifest.rejected, *shards, *manifest.consolidated):
        for fault in file_faults(root, entry, content=False):
            raise AlignDetError(
                f"{root / entry.path} {fault}: the dataset is damaged. See `aligndet verify`."
            )
    for shard in manifest.shards:
        committed_record(root, shard)
    return [f"{layout.SHARDS}/{shard.name}.json" for shard in manifest.shards]


def _is_private(uri: str) -> bool:
    return PurePosixPath(uri).is_absolute() or PureWindowsPath(uri).is_absolute() or scheme_of(uri) == "file"


def _has_secret(uri: str) -> bool:
    if scheme_of(uri) is None:
        return False
    query = uri.partition("?")[2].partition("#")[0]
    return _USER.match(uri) is not None or any(_SECRET.search(name) for name, _ in parse_qsl(query, True))


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
def dataset_card(manifest: Manifest, name: str, license_id: str, kinds: list[str]) -> str:
    """The README.md of a repository. kinds: extensions of the images, in order."""
    totals, recipe = manifest.totals, manifest.recipe
    size = next(label for limit, label in _SIZES if totals.images < limit)
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
{_images(manifest, kinds)}
- {totals.rejected:,} images gave no row; `rejected.parquet` says why.

{table}Fingerprint of the recipe: `{manifest.recipe_fingerprint}`.
Source: {_plain(manifest.source.kind)}, {manifest.source.images:,} images.
Format: `{manifest.format}` {manifest.format_version}.

The licence above is the one stated for the boxes; each image keeps its own.
"""


def _images(manifest: Manifest, kinds: list[str]) -> str:
    if manifest.images is not None:
        return "- The images are not part of it: `uri` names each, `sha256` proves it."
    reading = """`load_dataset("webdataset", data_files="shards/*.tar")` reads them."""
    if len(kinds) > 1:
        reading = f"""Extensions are {", ".join(kinds)}, and `load_dataset("webdataset", ...)` wants a single one:
  read these with the `webdataset` package."""
    return f"""- `shards/*.tar`: plain WebDataset shards, `<key>.<extension>` and `<key>.json`; images are unchanged.
  {reading}"""


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
