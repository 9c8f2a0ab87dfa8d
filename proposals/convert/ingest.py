"""Boxes from elsewhere, with their images, as a dataset: shards, commit records, manifest."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from proposals.boxes import clip
from proposals.convert.stream import ImageBoxes, Source
from proposals.dataset import layout
from proposals.dataset.assemble import PLAN_SCHEMA, assemble, plan_bytes
from proposals.dataset.files import write_atomically
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import (
    CommitRecord,
    Manifest,
    Rejection,
    SourceInfo,
    library_versions,
    write_model,
)
from proposals.dataset.writer import MinedImage, ShardWriter
from proposals.errors import AlignDetError
from proposals.filters import Filtered
from proposals.images import ImageRejected, decode_bgr
from proposals.recipe import Recipe


@dataclass(frozen=True)
class Import:
    """What is imported: images below ``images``; kind names the form; recipe is what the user says made the boxes."""

    source: Source
    kind: str
    images: Path
    recipe: Recipe
    images_per_shard: int = 64


def write_dataset(job: Import, root: Path) -> Manifest:
    """Make ``root`` a dataset of the images that ``job.source`` names, with its boxes.

    Boxes are clipped to their image, empty ones dropped; an image without any gets one box, the whole image, and the
    status of that fallback. An image that is missing, broken, of another size than the source says, or named twice,
    is rejected and listed, not fatal. The manifest's source kind says ``import-<kind>``: its recipe was declared, not
    run. Raises AlignDetError when ``root`` is not an empty folder or not one image was found.
    """
    files = _find_files(job.images)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise AlignDetError(f"{root} is not empty. Choose a new folder for the dataset.")
    plan = _plan(job, files)
    (root / layout.SHARDS).mkdir(parents=True, exist_ok=True)
    identity = JobIdentity(
        recipe=job.recipe,
        source=SourceInfo(kind=f"import-{job.kind}", images=plan.num_rows, fingerprint=_fingerprint(plan)),
        images_per_shard=job.images_per_shard,
        versions=library_versions(),
    )
    write_atomically(root / layout.PLAN, plan_bytes(plan, identity))
    records = list(_shards(job, root, files, identity.fingerprint()))
    if not any(record.shard.images for record in records):
        raise AlignDetError(
            f"none of the {plan.num_rows} images is a readable image below {job.images}. "
            "Name the folder that holds them: --images FOLDER"
        )
    return assemble(root, identity, records)


def _find_files(images: Path) -> dict[str, Path | None]:
    # By path, by name and by stem (SoCo has nothing else); None where a name stands for several files.
    if not images.is_dir():
        raise AlignDetError(f"{images} is no folder of images. Name it: --images FOLDER")
    found: dict[str, Path | None] = {}
    for path in sorted(path for path in images.rglob("*") if path.is_file() and not path.is_symlink()):
        inside = path.relative_to(images)
        for name in {inside.as_posix(), path.name, path.stem}:
            found[name] = None if name in found and name != inside.as_posix() else path
    return found


def _plan(job: Import, files: dict[str, Path | None]) -> pa.Table:
    uris = [_uri(image, files, job.images) for image in job.source.images()]
    columns = {
        "shard": np.arange(len(uris), dtype=np.int32) // job.images_per_shard,
        "key": [layout.key_of(uri) for uri in uris],
        "uri": uris,
        "size": [path.stat().st_size if (path := _file(uri, files)) else 0 for uri in uris],
    }
    return pa.table(columns, schema=PLAN_SCHEMA)


def _fingerprint(plan: pa.Table) -> str:
    rows = zip(plan.column("uri").to_pylist(), plan.column("size").to_pylist(), strict=True)
    return hashlib.sha256("\n".join(f"{uri}:{size}" for uri, size in rows).encode()).hexdigest()


def _file(uri: str, files: dict[str, Path | None]) -> Path | None:
    return files.get(uri) or files.get(PurePosixPath(uri).name)


def _uri(image: ImageBoxes, files: dict[str, Path | None], folder: Path) -> str:
    path = _file(image.uri, files)
    return image.uri if path is None else path.relative_to(folder).as_posix()


def _shards(
    job: Import, root: Path, files: dict[str, Path | None], fingerprint: str
) -> Iterator[CommitRecord]:
    stream, seen, number = job.source.images(), set[str](), 0
    while part := list(islice(stream, job.images_per_shard)):
        name, rejected = layout.shard_name(number), list[Rejection]()
        with ShardWriter(root, name) as writer:
            for image in part:
                uri = _uri(image, files, job.images)
                try:
                    if uri in seen:
                        raise ImageRejected("read", "named_twice", "another entry is the same file")
                    writer.add(_load(image, uri, _file(uri, files)))
                    seen.add(uri)
                except ImageRejected as error:
                    rejected.append(_rejection(uri, error))
            shard = writer.commit()
        record = CommitRecord(
            job=fingerprint, shard=shard, rejected=tuple(rejected), timing={}, versions=library_versions()
        )
        write_model(layout.record_path(root, name), record)
        yield record
        number += 1


def _load(image: ImageBoxes, uri: str, path: Path | None) -> MinedImage:
    if path is None:
        raise ImageRejected("read", "not_found", "no such file, or several of that name")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageRejected("read", "unreadable", type(error).__name__) from error
    decoded = decode_bgr(data)
    size, told = (decoded.width, decoded.height), (image.width, image.height)
    if all(told) and size != told:
        raise ImageRejected(
            "read", "other_size", f"{size[0]} x {size[1]} px, the boxes are for {told[0]} x {told[1]}"
        )
    return MinedImage(
        key=layout.key_of(uri),
        uri=uri,
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        width=decoded.width,
        height=decoded.height,
        orientation=decoded.orientation,
        proposals=_proposals(image, *size),
    )


def _proposals(image: ImageBoxes, width: int, height: int) -> Filtered:
    boxes = clip(image.boxes, width, height)
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if solid.any():
        return Filtered(boxes[solid], image.rank[solid], "ok")
    whole = np.array([[0, 0, width, height]], dtype=np.float32)
    return Filtered(whole, np.zeros(1, dtype=np.float32), "fallback_whole_image")


def _rejection(uri: str, error: ImageRejected) -> Rejection:
    return Rejection(
        key=layout.key_of(uri),
        uri=uri,
        stage=error.stage,
        reason=error.reason,
        detail=error.detail,
        traceback_hash="",
    )
